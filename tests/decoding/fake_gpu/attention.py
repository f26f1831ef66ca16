"""Paged attention in a few of torch's operations, on any device, none of which looks at a number: can be recorded.

Every token is a row of its own that sees its row's keys up to its position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from decoding.attention.interface import Batch, DecodeInputs, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape, Pages
from decoding.device import to_device


@dataclass(frozen=True, slots=True)
class Plan:
    """probes: of each probed row its last token and how many keys it has."""

    slots: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T]
    tables: torch.Tensor  # int64 [T, P]
    probes: dict[int, tuple[int, int]]
    scores: dict[int, torch.Tensor]


class PlainAttention(PagedAttention):
    is_capturable = True

    def __init__(self, shapes: Sequence[LayerShape], *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(Pages(shapes, 16, dtype, device))

    def plan(self, batch: Batch) -> Plan:
        device = self.pages.device
        rows = np.repeat(np.arange(batch.num_rows), np.diff(batch.query_starts))
        slots, positions, tables = (
            to_device(each, device) for each in (batch.slots, batch.positions, batch.page_tables[rows])
        )
        probes = {row: (int(batch.query_starts[row + 1]) - 1, int(batch.kv_lengths[row])) for row in batch.probe_rows}
        return Plan(slots, positions, tables, probes, {})

    def decode_plan(self, inputs: DecodeInputs) -> Plan:
        return Plan(inputs.slots, inputs.positions, inputs.page_tables, {}, {})

    def forward(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Any
    ) -> torch.Tensor:
        keys, values = (part[spec.layer] for part in (self.pages.keys, self.pages.values))
        places = plan.slots // self.page_size, plan.slots % self.page_size
        for pages, new in ((keys, key), (values, value)):
            pages.transpose(1, 2).index_put_(places, new[0].transpose(0, 1).to(pages.dtype))  # [T, kv_heads, dim]
        group = self.pages.shapes[spec.layer].group
        seen_keys, seen_values = (self._gathered(pages, plan.tables, group) for pages in (keys, values))
        scores = torch.einsum("htd,thkd->thk", query[0].float(), seen_keys) * spec.scaling
        if spec.softcap is not None:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        at = torch.arange(scores.shape[-1], device=scores.device)
        is_seen = at <= plan.positions[:, None]  # [T, keys]
        if spec.sliding_window is not None:
            is_seen = is_seen & (at > plan.positions[:, None] - spec.sliding_window)
        scores = torch.where(is_seen[:, None], scores, float("-inf"))
        if self._is_last(spec.layer):
            plan.scores.update({row: scores[token, :, :count] for row, (token, count) in plan.probes.items()})
        out = torch.einsum("thk,thkd->thd", _weights(scores, spec.sinks), seen_values)
        return out.to(query.dtype)[None]

    def _gathered(self, pages: torch.Tensor, tables: torch.Tensor, group: int) -> torch.Tensor:
        """[T, heads, keys, dim] float32."""
        found = pages[tables].float().transpose(1, 2).flatten(2, 3)  # [T, kv_heads, keys, dim]
        return found.repeat_interleave(group, 1)


def _weights(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float()[None, :, None].expand(len(scores), -1, 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
