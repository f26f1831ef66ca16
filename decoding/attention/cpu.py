"""Paged attention on the CPU whose result for a query is bitwise the same however the query arrives.

Gathers pages into contiguous keys and values, then two batched float32 products with a softmax between. What makes a
query's result independent of its neighbours, its chunk and all padding: query rows come in fours (one GEMM kernel);
each score contracts over head_dim alone; softmax sums keys in order, so masked keys behind add exact zeros; values are
contracted in key blocks whose borders depend on the position alone, added up in order. A shape never tested for this
on the machine at hand is caught by `tests/decoding/attention/test_cpu.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from decoding.attention.interface import Batch, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape, Pages, Writes
from decoding.attention.tiles import ROW_MULTIPLE, Tile, build_tile, cut, group


@dataclass(frozen=True, slots=True)
class CPUPlan:
    tiles: tuple[Tile, ...]
    writes: Writes
    is_in_order: bool  # one tile holds every token in the batch's order, unpadded
    probe_rows: dict[int, int]  # row -> its number of keys
    scores: dict[int, torch.Tensor]  # filled by the last layer


class CPUAttention(PagedAttention):
    """Keeps keys and values in float32 whatever the model's dtype: scores and softmax want it."""

    knows_biases = True

    # Page sizes 16, 32 and 64 measured alike, so the smallest, which shares most and copies least. One thread, us a
    # layer, 9 heads on 3 of 64: 1 row x 192 keys 200 / 224 / 227; 1 x 1024: 469 / 606 / 625; 16 x 192: 1359 / 1360 /
    # 1060, where two plain products over keys already contiguous take 832.
    def __init__(self, shapes: Sequence[LayerShape], *, page_size: int = 16) -> None:
        if 64 % page_size:
            raise ValueError(f"page size {page_size} does not divide the key block of 64 positions")
        super().__init__(Pages(shapes, page_size, torch.float32, torch.device("cpu")))
        self._widest = max(shapes, key=lambda shape: shape.heads * shape.head_dim)
        self._gathered = (torch.empty(0), torch.empty(0))

    def plan(self, batch: Batch) -> CPUPlan:
        groups = group(cut(batch, self._widest.heads), self._widest)
        tiles = tuple(build_tile(batch, pieces, self.page_size) for pieces in groups)
        return CPUPlan(
            tiles,
            Writes(batch.slots, self.page_size, torch.device("cpu")),
            is_in_order=len(tiles) == 1 and not tiles[0].is_padded,
            probe_rows={row: int(batch.kv_lengths[row]) for row in batch.probe_rows},
            scores={},
        )

    def forward(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: CPUPlan
    ) -> torch.Tensor:
        self.pages.write(spec.layer, key, value, plan.writes)
        queries = query[0].transpose(0, 1).float()  # [T, heads, head_dim]
        if plan.is_in_order:
            return self._attend(spec, queries, plan.tiles[0], plan).to(value.dtype)[None]
        out = value.new_empty(query.shape[2], query.shape[1], value.shape[-1])
        for tile in plan.tiles:
            attended = self._attend(spec, queries.index_select(0, tile.token_ids), tile, plan)
            valid = attended.index_select(0, tile.valid) if tile.is_padded else attended
            tokens = tile.token_ids.index_select(0, tile.valid) if tile.is_padded else tile.token_ids
            out.index_copy_(0, tokens, valid.to(out.dtype))
        return out[None]

    def _attend(self, spec: LayerSpec, queries: torch.Tensor, tile: Tile, plan: CPUPlan) -> torch.Tensor:
        """queries [R * Q, heads, head_dim] -> [R * Q, heads, v_head_dim]."""
        shape = self.pages.shapes[spec.layer]
        keys = self._gather(0, self.pages.keys[spec.layer], tile)
        values = self._gather(1, self.pages.values[spec.layer], tile)
        scores = self._scores(spec, _pack_queries(queries, tile, shape), keys, tile)  # [R * H, M, L]
        if plan.probe_rows and self._is_last(spec.layer):
            _probe(scores.view(tile.num_rows, shape.kv_heads, -1, tile.num_keys), tile, shape, plan)
        weights = _softmax(scores, spec.sinks, tile, shape)
        return _unpack(_weighted(weights, values, tile.edges), tile, shape)

    def _gather(self, which: int, pages: torch.Tensor, tile: Tile) -> torch.Tensor:
        """The tile's pages, laid end to end, in a buffer used again by the next layer: [R * H, L, dim]."""
        kv_heads, dim = pages.shape[1], pages.shape[3]
        count = tile.num_rows * kv_heads * tile.num_keys * dim
        if self._gathered[which].numel() < count:
            first, second = (torch.empty(count) if index == which else self._gathered[index] for index in range(2))
            self._gathered = (first, second)
        ids = tile.gather_ids(kv_heads)
        buffer = self._gathered[which][:count].view(len(ids), self.page_size * dim)
        torch.index_select(pages.view(-1, self.page_size * dim), 0, ids, out=buffer)
        return buffer.view(tile.num_rows * kv_heads, tile.num_keys, dim)

    def _scores(self, spec: LayerSpec, queries: torch.Tensor, keys: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Scaled, capped and masked: [R * H, M, L]."""
        shape = self.pages.shapes[spec.layer]
        mask = tile.mask(shape.group, spec.sliding_window)  # [R, 1, M, L]
        if spec.bias is not None:
            mask = tile.biased_mask(mask, spec.bias, shape)  # [R, H, M, L]
        by_head = (tile.num_rows, shape.kv_heads, *mask.shape[2:])
        if spec.softcap is None:
            scores = mask.expand(by_head).clone(memory_format=torch.contiguous_format).view(-1, *mask.shape[2:])
            return scores.baddbmm_(queries, keys.transpose(1, 2), alpha=spec.scaling)
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(spec.scaling / spec.softcap)
        scores.tanh_().mul_(spec.softcap).view(by_head).add_(mask)
        return scores


def _pack_queries(queries: torch.Tensor, tile: Tile, shape: LayerShape) -> torch.Tensor:
    """[R * Q, heads, dim] -> [R * H, M, dim]: all query heads of one kv head are rows of one matrix."""
    rows, dim = tile.num_queries * shape.group, queries.shape[-1]
    padded = rows + -rows % ROW_MULTIPLE
    packed = queries.new_zeros(tile.num_rows, shape.kv_heads, padded, dim)
    target = packed[:, :, :rows].view(tile.num_rows, shape.kv_heads, tile.num_queries, shape.group, dim)
    target.copy_(queries.view(tile.num_rows, tile.num_queries, shape.kv_heads, shape.group, dim).transpose(1, 2))
    return packed.view(-1, padded, dim)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None, tile: Tile, shape: LayerShape) -> torch.Tensor:
    """Over keys, with each head's sink, if it has one, as one more key whose weight is dropped: [R * H, M, L]."""
    if sinks is None:
        return torch.softmax(scores, -1)
    rows = tile.num_queries * shape.group
    column = scores.new_zeros(tile.num_rows, shape.kv_heads, scores.shape[1], 1)
    by_head = sinks.float().view(shape.kv_heads, 1, shape.group)
    column[:, :, :rows, 0] = by_head.expand(-1, tile.num_queries, -1).flatten(1)
    return torch.softmax(torch.cat([scores, column.view(-1, scores.shape[1], 1)], -1), -1)[..., :-1]


def _weighted(weights: torch.Tensor, values: torch.Tensor, edges: Sequence[int]) -> torch.Tensor:
    """weights [B, M, L] times values [B, L, dim], one key block after the other: [B, M, dim]."""
    out = torch.bmm(weights[:, :, : edges[1]], values[:, : edges[1]])
    for start, end in pairwise(edges[1:]):
        out.baddbmm_(weights[:, :, start:end], values[:, start:end])
    return out


def _unpack(attended: torch.Tensor, tile: Tile, shape: LayerShape) -> torch.Tensor:
    """[R * H, M, dim] -> [R * Q, heads, dim]."""
    rows = tile.num_queries * shape.group
    dim = attended.shape[-1]
    by_head = attended.view(tile.num_rows, shape.kv_heads, -1, dim)[:, :, :rows]
    by_query = by_head.view(tile.num_rows, shape.kv_heads, tile.num_queries, shape.group, dim).transpose(1, 2)
    return by_query.reshape(-1, shape.heads, dim)


def _probe(scores: torch.Tensor, tile: Tile, shape: LayerShape, plan: CPUPlan) -> None:
    """Keep the scores [R, H, M, L] of the last query of every probed row whose last query is in this tile."""
    for index, row in enumerate(tile.rows):
        keys = plan.probe_rows.get(row)
        if keys == tile.last_keys[index]:
            first = tile.last_queries[index] * shape.group
            plan.scores[row] = scores[index, :, first : first + shape.group, :keys].reshape(shape.heads, keys).clone()
