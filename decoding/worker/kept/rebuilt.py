"""A model made of its description, without transformers: embedding, fused layers, norm and output matrix, no more.

Whether that is all the original does is found out by trial before anything is kept (`keeping.py`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from decoding.attention.compiled import CompiledAttention
from decoding.attention.interface import Batch
from decoding.kernels.cpu.panels import PanelLinear
from decoding.model.attention_function import TracedAttention
from decoding.model.elementwise import FusedRMSNorm
from decoding.model.fused import FusedStack
from decoding.model.model import Hidden, Model
from decoding.worker.kept.description import Description, Rotation


class RebuiltBody(nn.Module):
    """From tokens to hidden states."""

    def __init__(self, description: Description, attention: CompiledAttention, stack: FusedStack) -> None:
        super().__init__()
        self._attention, self._stack = attention, stack
        self._num_layers = len(description.layers)
        self._vectors, self._rotation = description.vectors, description.rotation
        self._norm = FusedRMSNorm(description.norm.weight, description.norm.eps)

    @property
    def weight_bytes(self) -> int:
        return sum(self._stack.weight_bytes(index) for index in range(self._num_layers))

    def forward(self, batch: Batch, layers: tuple[int, ...], shift: int) -> Hidden:
        plan = self._attention.plan(batch)
        x = F.embedding(torch.from_numpy(batch.token_ids)[None], self._vectors).float()  # [1, T, hidden]
        for token, vector in batch.embeds.items():
            x[0, token] = vector.to(x)
        angles = _angles(self._rotation, torch.from_numpy(batch.positions + shift))
        kept = {}
        for index in range(self._num_layers):
            if index in layers:
                kept[index] = x[0]
            x = self._stack.output(index, x, angles, plan)
        last: torch.Tensor = self._norm(x)[0]
        if self._num_layers in layers:
            kept[self._num_layers] = last
        return Hidden(last, kept, self._attention.probed(plan))


class RebuiltHead:
    def __init__(self, output_matrix: nn.Module) -> None:
        self.output_matrix = output_matrix

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab]
        return self.project(hidden)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab]
        logits: torch.Tensor = self.output_matrix(hidden[None])[0]
        return logits


def rebuild(description: Description) -> Model:
    """With an attention and weights of its own."""
    shapes = tuple(layer.shape for layer in description.layers)
    specs = tuple(layer.spec for layer in description.layers)
    attention = CompiledAttention(shapes, dtype=description.cache_dtype)
    stack = FusedStack(TracedAttention(specs, shapes, description.num_positions), attention)
    for index, layer in enumerate(description.layers):
        stack.put(index, layer.weights, rotates=layer.rotates)
    output = description.output
    shape = torch.empty(output.shape, device="meta")
    return assembled(description, attention, stack, PanelLinear(shape, output.bias, panels=output.panels))


def assembled(
    description: Description, attention: CompiledAttention, stack: FusedStack, output_matrix: nn.Module
) -> Model:
    """Around layers and an output matrix that are there."""
    body = RebuiltBody(description, attention, stack)
    return Model(description.info, body, RebuiltHead(output_matrix), attention, is_compiled=True)


def _angles(rotation: Rotation, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [1, T, rotary] each
    half = positions[None, :, None].float() * rotation.frequencies
    both = torch.cat((half, half), -1)
    return both.cos() * rotation.scale, both.sin() * rotation.scale
