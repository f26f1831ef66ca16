"""Paged attention in the plainest words: the oracle the other backends are tested against; runs on any device.

One row at a time (`textbook.py`), so that its results do not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.attention.interface import Batch, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape, Pages, Writes
from decoding.attention.textbook import RowPlan, attend, plan_row


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    rows: tuple[RowPlan, ...]
    writes: Writes
    probe_rows: tuple[int, ...]
    scores: dict[int, torch.Tensor]  # filled by the last layer


class ReferenceAttention(PagedAttention):
    knows_biases = True

    def __init__(
        self, shapes: Sequence[LayerShape], *, device: torch.device, dtype: torch.dtype, page_size: int = 16
    ) -> None:
        super().__init__(Pages(shapes, page_size, dtype, device))

    def plan(self, batch: Batch) -> ReferencePlan:
        rows = tuple(plan_row(batch, row, self.pages) for row in range(batch.num_rows))
        return ReferencePlan(rows, Writes(batch.slots, self.page_size, self.pages.device), batch.probe_rows, {})

    def forward(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: ReferencePlan
    ) -> torch.Tensor:
        self.pages.write(spec.layer, key, value, plan.writes)
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # [T, heads, v_head_dim]
        for index, row in enumerate(plan.rows):
            scores, attended = attend(spec, query[0, :, row.tokens].float(), row, self.pages)
            out[row.tokens] = attended.transpose(0, 1).to(out.dtype)
            if index in plan.probe_rows and self._is_last(spec.layer):
                plan.scores[index] = scores[:, -1].clone()
        return out[None]
