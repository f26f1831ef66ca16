"""The decoder: packed rows over paged self-attention and over their requests' encoder memories.

Both attentions are the backend's. To it, a token that reads an encoder memory is a row of one query at the memory's
last position, whose own key and value are zeros that go to page 0, which nobody reads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from decoding.attention.interface import Batch, LayerSpec, Memories, PagedAttention
from decoding.device import to_device
from decoding.model.model import Hidden
from decoding.model.seq2seq.stack import Stack


class Decoder(nn.Module):
    def __init__(self, stack: Stack, attention: PagedAttention) -> None:
        super().__init__()
        self.embedding, self.layers, self.norm, self.memory = stack.embedding, stack.layers, stack.norm, stack.memory
        self.attention = attention
        self._specs = [LayerSpec(i, stack.scaling, bias=bias) for i, bias in enumerate(stack.biases)]
        self._cross_specs = [LayerSpec(i, stack.scaling) for i in range(len(stack.biases))]

    def remember(self, sources: Batch, encoded: torch.Tensor) -> None:  # [1, T, hidden]
        """Write what every layer reads of the encoder's output into the sources' slots."""
        plan = self.attention.plan(sources)
        for spec, project in zip(self._cross_specs, self.memory, strict=True):
            key, value = project(encoded)
            self.attention.forward(spec, torch.zeros_like(key), key, value, plan)

    def forward(self, batch: Batch, layers: tuple[int, ...], shift: int) -> Hidden:
        """layers: whose inputs to keep; as many as there are stands for the output. shift: of the positions."""
        assert batch.memories is not None
        device = self.embedding.tokens.weight.device
        ids, positions = batch.ids_on(device), to_device(batch.positions + shift, device)
        plan = self.attention.plan(dataclasses.replace(batch, probe_rows=()))
        cross_plan = self.attention.plan(cross_batch(batch, batch.memories))
        x: torch.Tensor = self.embedding(ids, positions, batch.embeds)
        kept: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index in layers:
                kept[index] = x[0]
            x = layer(x, _Attend(self.attention, self._specs[index], plan),
                      _Read(self.attention, self._cross_specs[index], cross_plan))  # fmt: skip
        last = (x if self.norm is None else self.norm(x))[0]
        if len(self.layers) in layers:
            kept[len(self.layers)] = last
        probed = self.attention.probed(cross_plan)
        ends = {int(batch.query_starts[row + 1]) - 1: row for row in batch.probe_rows}
        return Hidden(last, kept, {ends[token]: scores for token, scores in probed.items()})


@dataclasses.dataclass(frozen=True, slots=True)
class _Attend:
    attention: PagedAttention
    spec: LayerSpec
    plan: Any

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attention.forward(self.spec, query, key, value, self.plan)


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    attention: PagedAttention
    spec: LayerSpec
    plan: Any

    def __call__(self, query: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros_like(query)
        return self.attention.forward(self.spec, query, nothing, nothing, self.plan)


def cross_batch(batch: Batch, memories: Memories) -> Batch:
    """Every token as a row of its own over its request's encoder memory."""
    row_of = np.repeat(np.arange(batch.num_rows), np.diff(batch.query_starts))
    lengths = memories.lengths[row_of]
    return Batch(
        token_ids=batch.token_ids,
        positions=lengths - 1,
        slots=np.zeros_like(batch.slots),
        query_starts=np.arange(batch.num_tokens + 1),
        kv_lengths=lengths,
        page_tables=memories.page_tables[row_of],
        probe_rows=tuple(int(batch.query_starts[row + 1]) - 1 for row in batch.probe_rows),
    )
