"""The encoder: whole sources of several requests as one ragged forward, each attended to by itself.

Products run over all tokens at once, in linears whose rows do not depend on each other; attention runs source by
source, so its shapes, and with them its results, are the source's own.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from decoding.attention.interface import Batch
from decoding.model.seq2seq.stack import Stack


class Encoder(nn.Module):
    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.embedding, self.layers, self.norm = stack.embedding, stack.layers, stack.norm
        self._scaling = stack.scaling
        self._biases = stack.biases

    def forward(self, sources: Batch) -> torch.Tensor:  # [1, T, hidden]
        device = self.embedding.tokens.weight.device
        ids, positions = (torch.from_numpy(part).to(device) for part in (sources.token_ids, sources.positions))
        x: torch.Tensor = self.embedding(ids, positions, {})
        attended = _SourceAttention(sources.query_starts.tolist(), self._scaling)
        for layer, bias in zip(self.layers, self._biases, strict=True):
            attended.bias = bias
            x = layer(x, attended)
        return x if self.norm is None else self.norm(x)


class _SourceAttention:
    """Every token of a source looks at all of it. bias: [heads, 2 * D + 1] by how far ahead the key lies, plus D."""

    def __init__(self, starts: list[int], scaling: float) -> None:
        self._starts = starts
        self._scaling = scaling
        self.bias: torch.Tensor | None = None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])  # [T, heads, dim]
        for start, end in pairwise(self._starts):
            q, k, v = (_own(part[0, :, start:end]) for part in (query, key, value))
            out[start:end] = self._attend(q, k, v).transpose(0, 1).to(out.dtype)
        return out[None]

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Each [heads, S, dim] float32."""
        scores = torch.bmm(query, key.transpose(1, 2)) * self._scaling
        if self.bias is not None:
            reach = self.bias.shape[1] // 2
            at = torch.arange(query.shape[1], device=query.device)
            scores = scores + self.bias[:, (at - at[:, None]).clamp(-reach, reach) + reach]
        return torch.bmm(torch.softmax(scores, -1), value)


def _own(part: torch.Tensor) -> torch.Tensor:
    """A copy laid out and aligned the same whatever the source's neighbours."""
    return part.float().clone(memory_format=torch.contiguous_format)
