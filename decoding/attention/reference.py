"""Paged attention in the plainest words: the oracle the other backends are tested against; runs on any device.

Gathers each row's pages and does the textbook arithmetic in float32, one row at a time. Its results do not depend on
the other rows, but, unlike `cpu.py`, may depend in the last bit on how a row was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.attention.interface import Batch, LayerSpec
from decoding.attention.pages import LayerShape, Pages, Writes


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row of the batch, on the device."""

    tokens: slice
    pages: torch.Tensor  # int64 [pages of the row]
    key_positions: torch.Tensor  # int64 [1, keys]
    query_positions: torch.Tensor  # int64 [queries, 1]

    def visible(self, sliding_window: int | None) -> torch.Tensor:
        """Which keys each query may see: bool [queries, keys]."""
        visible = self.key_positions <= self.query_positions
        if sliding_window is not None:
            visible &= self.key_positions > self.query_positions - sliding_window
        return visible


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    rows: tuple[RowPlan, ...]
    writes: Writes
    probe_rows: tuple[int, ...]
    scores: dict[int, torch.Tensor]  # filled by the last layer


class ReferenceAttention:
    def __init__(
        self, shapes: Sequence[LayerShape], *, device: torch.device, dtype: torch.dtype, page_size: int = 16
    ) -> None:
        self.page_size = page_size
        self._pages = Pages(shapes, page_size, dtype, device)
        self._device = device

    def allocate(self, num_pages: int) -> None:
        self._pages.allocate(num_pages)

    def bytes_per_page(self) -> int:
        return self._pages.bytes_per_page()

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        self._pages.copy(pairs)

    def plan(self, batch: Batch) -> ReferencePlan:
        rows = tuple(self._plan_row(batch, row) for row in range(batch.num_rows))
        return ReferencePlan(rows, Writes(batch.slots, self.page_size, self._device), batch.probe_rows, {})

    def _plan_row(self, batch: Batch, row: int) -> RowPlan:
        start, end, keys = int(batch.query_starts[row]), int(batch.query_starts[row + 1]), int(batch.kv_lengths[row])
        pages = batch.page_tables[row, : -(-keys // self.page_size)]
        positions = torch.arange(keys, device=self._device)
        return RowPlan(
            slice(start, end),
            torch.from_numpy(pages).to(self._device),
            positions[None],
            positions[keys - (end - start) :, None],
        )

    def forward(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: ReferencePlan
    ) -> torch.Tensor:
        self._pages.write(spec.layer, key, value, plan.writes)
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # [T, heads, v_head_dim]
        for index, row in enumerate(plan.rows):
            scores, attended = self._attend(spec, query[0, :, row.tokens].float(), row)
            out[row.tokens] = attended.transpose(0, 1).to(out.dtype)
            if index in plan.probe_rows and spec.layer == len(self._pages.shapes) - 1:
                plan.scores[index] = scores[:, -1].clone()
        return out[None]

    def probed(self, plan: ReferencePlan) -> dict[int, torch.Tensor]:
        return dict(plan.scores)

    def _attend(self, spec: LayerSpec, query: torch.Tensor, row: RowPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """query [heads, queries, head_dim] -> scores [heads, queries, keys], attended [heads, queries, v_head_dim]."""
        keys = self._gather(self._pages.keys[spec.layer], row, query.shape[0])
        scores = query @ keys.transpose(1, 2) * spec.scaling
        if spec.softcap is not None:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        if spec.bias is not None:
            distances = (row.query_positions - row.key_positions).clamp(0, spec.bias.shape[1] - 1)
            scores = scores + spec.bias[:, distances]
        scores = scores.masked_fill(~row.visible(spec.sliding_window), float("-inf"))
        weights = torch.softmax(with_sinks(scores, spec.sinks), -1)[..., : scores.shape[-1]]
        return scores, weights @ self._gather(self._pages.values[spec.layer], row, query.shape[0])

    def _gather(self, pages: torch.Tensor, row: RowPlan, heads: int) -> torch.Tensor:
        """The row's keys or values, kv heads repeated: [heads, keys, dim] float32."""
        found = pages.index_select(0, row.pages).float().transpose(0, 1).flatten(1, 2)
        return found[:, : row.key_positions.shape[1]].repeat_interleave(heads // found.shape[0], 0)


def with_sinks(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """scores [heads, queries, keys] with each head's sink as one more key, which takes weight and gives nothing."""
    if sinks is None:
        return scores
    column = sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat([scores, column], -1)
