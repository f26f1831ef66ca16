"""One row's attention over its pages by the textbook, in float32: for the oracle, and for scores that are rarely asked.

Its results may depend in the last bit on how the row was cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.attention.interface import Batch, LayerSpec
from decoding.attention.pages import Pages


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


def plan_row(batch: Batch, row: int, pages: Pages) -> RowPlan:
    start, end, keys = int(batch.query_starts[row]), int(batch.query_starts[row + 1]), int(batch.kv_lengths[row])
    own = batch.page_tables[row, : -(-keys // pages.page_size)]
    positions = torch.arange(keys, device=pages.device)
    return RowPlan(
        slice(start, end),
        torch.from_numpy(own).to(pages.device),
        positions[None],
        positions[keys - (end - start) :, None],
    )


def attend(spec: LayerSpec, query: torch.Tensor, row: RowPlan, pages: Pages) -> tuple[torch.Tensor, torch.Tensor]:
    """query [heads, queries, head_dim] -> scores [heads, queries, keys], attended [heads, queries, v_head_dim]."""
    keys, values = (_gathered(part[spec.layer], row, query.shape[0]) for part in (pages.keys, pages.values))
    scores = query @ keys.transpose(1, 2) * spec.scaling
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if spec.bias is not None:
        distances = (row.query_positions - row.key_positions).clamp(0, spec.bias.shape[1] - 1)
        scores = scores + spec.bias[:, distances]
    scores = scores.masked_fill(~row.visible(spec.sliding_window), float("-inf"))
    weights = torch.softmax(_with_sinks(scores, spec.sinks), -1)[..., : scores.shape[-1]]
    return scores, weights @ values


def _gathered(pages: torch.Tensor, row: RowPlan, heads: int) -> torch.Tensor:
    """The row's keys or values, kv heads repeated: [heads, keys, dim] float32."""
    found = pages.index_select(0, row.pages).float().transpose(0, 1).flatten(1, 2)
    return found[:, : row.key_positions.shape[1]].repeat_interleave(heads // found.shape[0], 0)


def _with_sinks(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """scores [heads, queries, keys] with each head's sink as one more key, which takes weight and gives nothing."""
    if sinks is None:
        return scores
    column = sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    return torch.cat([scores, column], -1)
