"""Paged attention on a GPU by our own Triton kernels; under TRITON_INTERPRET=1 on the CPU, for tests.

Owns the plan (device tensors that kernels read, and which queries share a program) and the launches; the arithmetic is
`kernels/gpu/attend.py`'s, but of probed scores `textbook.py`'s. Nothing that a launch needs
from the host depends on how long rows are, so a launch can be captured and replayed (`decode_plan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from decoding.attention.interface import Batch, DecodeInputs, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape, Pages
from decoding.attention.textbook import RowPlan, attend, plan_row
from decoding.device import to_device
from decoding.kernels.gpu import attend as kernels

FEW_LANES = 16
"""Query heads of a program that decodes: the least that a tensor core takes."""
MANY_LANES = 64
"""Query heads of a program that prefills."""
FEW_WARPS, MANY_WARPS = 4, 8
"""With four, the sums of many lanes do not fit into registers (compiled for an H100: 75 stores to local memory)."""
BLOCK_BYTES = 16384
"""Of the keys of one product, and of their values."""
ENOUGH_PROGRAMS = 256
"""About two for each of a GPU's multiprocessors: with as many, splitting by keys wins nothing."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries that share programs: `lanes` query heads each."""

    rows: torch.Tensor  # int64 [tiles]
    queries: torch.Tensor  # int64 [tiles]   the tile's first query in its row
    lanes: int
    num_spans: int  # of the longest row; 1: not split


@dataclass(frozen=True, slots=True)
class TritonPlan:
    """tiles: by number of query heads a kv head has."""

    slots: torch.Tensor  # int64 [T]
    query_starts: torch.Tensor  # int64 [R + 1]
    kv_lengths: torch.Tensor  # int64 [R]
    page_tables: torch.Tensor  # int64 [R, P]
    tiles: dict[int, tuple[Tiles, ...]]
    probes: dict[int, RowPlan]
    scores: dict[int, torch.Tensor]  # filled by the last layer


class TritonAttention(PagedAttention):
    """is_uniform: prefill uses the programs that decode uses, so that a query's bits do not depend on how it came.

    block: keys of one product. span: keys summed up before they are merged with others; the size of a split, the same
    whatever the batch.
    """

    is_capturable = True

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        device: torch.device,
        dtype: torch.dtype,
        page_size: int = 16,
        block: int = 64,
        span: int = 256,
        is_uniform: bool = False,
    ) -> None:
        if span % block:
            raise ValueError(f"blocks of {block} keys do not divide spans of {span}")
        super().__init__(Pages(shapes, page_size, dtype, device))
        self._block, self._span = block, span
        self._many_lanes = FEW_LANES if is_uniform else MANY_LANES
        # Not where one kernel's sums must be another's to the bit: a compiler contracts each as it likes.
        self._is_fused = not is_uniform
        self._is_wide = device.type == "cpu"
        self._groups = sorted({shape.group for shape in shapes})
        self._most_kv_heads = max(shape.kv_heads for shape in shapes)

    def plan(self, batch: Batch) -> TritonPlan:
        counts = np.diff(batch.query_starts)
        arrays = [batch.slots, batch.query_starts, batch.kv_lengths, batch.page_tables]
        for group in self._groups:
            arrays += [
                *_cut(counts == 1, counts, 1),
                *_cut(counts > 1, counts, _lanes(self._many_lanes, group) // group),
            ]
        slots, starts, lengths, tables, *cuts = _together(arrays, self.pages.device)
        longest = int(batch.kv_lengths.max())
        tiles = {}
        for at, group in enumerate(self._groups):
            few, many = (cuts[4 * at + i : 4 * at + i + 2] for i in (0, 2))
            tiles[group] = tuple(
                self._tiles(rows, queries, _lanes(lanes, group), longest)
                for (rows, queries), lanes in ((few, FEW_LANES), (many, self._many_lanes))
                if len(rows)
            )
        probes = {row: plan_row(batch, row, self.pages) for row in batch.probe_rows}
        return TritonPlan(slots, starts, lengths, tables, tiles, probes, {})

    def decode_plan(self, inputs: DecodeInputs) -> TritonPlan:
        """A plan over tensors whose contents may change from one run to the next."""
        num_rows, num_pages = inputs.page_tables.shape
        starts = torch.arange(num_rows + 1, device=self.pages.device)
        queries = torch.zeros(num_rows, dtype=torch.int64, device=self.pages.device)
        longest = num_pages * self.page_size
        tiles: dict[int, tuple[Tiles, ...]] = {
            group: (self._tiles(starts[:-1], queries, _lanes(FEW_LANES, group), longest),) for group in self._groups
        }
        return TritonPlan(inputs.slots, starts, inputs.kv_lengths, inputs.page_tables, tiles, {}, {})

    def forward(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: TritonPlan,
    ) -> torch.Tensor:
        query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
        self._scatter(spec.layer, key[0], value[0], plan.slots)
        return self.attend(spec, query, plan)

    def attend(self, spec: LayerSpec, query: torch.Tensor, plan: TritonPlan) -> torch.Tensor:
        """As `forward`, where keys and values are in their slots already."""
        shape = self.pages.shapes[spec.layer]
        out = query.new_empty(query.shape[2], query.shape[1], shape.v_head_dim)  # [T, heads, v_head_dim]
        for tiles in plan.tiles[shape.group]:
            self._launch(spec, query[0], out, tiles, plan)
        if self._is_last(spec.layer):
            for index, row in plan.probes.items():
                last = replace(row, query_positions=row.query_positions[-1:])
                plan.scores[index] = attend(spec, query[0, :, row.tokens][:, -1:].float(), last, self.pages)[0][:, 0]
        return out[None]

    def _tiles(self, rows: torch.Tensor, queries: torch.Tensor, lanes: int, longest: int) -> Tiles:
        is_split = len(rows) * self._most_kv_heads < ENOUGH_PROGRAMS
        return Tiles(rows, queries, lanes, -(-longest // self._span) if is_split else 1)

    def _scatter(self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        """key [kv_heads, T, head_dim], value [kv_heads, T, v_head_dim] into their slots."""
        shape = self.pages.shapes[layer]
        kernels.scatter[(len(slots), shape.kv_heads)](
            key, value, slots, self.pages.keys[layer], self.pages.values[layer],
            key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            shape.head_dim, shape.v_head_dim, self.page_size, _padded(shape.head_dim), _padded(shape.v_head_dim),
            enable_fp_fusion=self._is_fused,
        )  # fmt: skip

    def _launch(
        self,
        spec: LayerSpec,
        query: torch.Tensor,  # [heads, T, head_dim]
        out: torch.Tensor,  # [T, heads, v_head_dim]
        tiles: Tiles,
        plan: TritonPlan,
    ) -> None:
        shape, is_split = self.pages.shapes[spec.layer], tiles.num_spans > 1
        sinks = query if spec.sinks is None else spec.sinks
        bests, totals, parts = self._scratch(shape, tiles) if is_split else (out, out, out)
        options: dict[str, Any] = {
            "window": spec.sliding_window or 0, "GROUP": shape.group, "M": tiles.lanes, "SPAN": self._span,
            "V_DIM": _padded(shape.v_head_dim), "HAS_SINKS": spec.sinks is not None,
            "enable_fp_fusion": self._is_fused,
        }  # fmt: skip
        grid = (len(tiles.rows), shape.kv_heads)
        kernels.attend[(*grid, tiles.num_spans)](
            out, query, self.pages.keys[spec.layer], self.pages.values[spec.layer],
            tiles.rows, tiles.queries, plan.query_starts, plan.kv_lengths, plan.page_tables, sinks,
            bests, totals, parts,
            query.stride(0), query.stride(1), out.stride(0), plan.page_tables.stride(0), spec.scaling,
            shape.head_dim, shape.v_head_dim, self.page_size, softcap=spec.softcap or 0.0,
            DIM=_padded(shape.head_dim), BLOCK=self._block_for(shape), IS_SPLIT=is_split,
            WIDE=self._is_wide, num_warps=MANY_WARPS if tiles.lanes >= MANY_LANES else FEW_WARPS, **options,
        )  # fmt: skip
        if is_split:
            kernels.combine[grid](
                out, tiles.rows, tiles.queries, plan.query_starts, plan.kv_lengths, sinks, bests, totals, parts,
                out.stride(0), tiles.num_spans, shape.v_head_dim, **options,
            )  # fmt: skip

    def _block_for(self, shape: LayerShape) -> int:
        """Fewer keys a product where heads are wide: a multiprocessor holds several blocks of keys and values."""
        fitting = BLOCK_BYTES // (_padded(max(shape.head_dim, shape.v_head_dim)) * self.pages.dtype.itemsize)
        return min(self._block, max(16, fitting))

    def _scratch(self, shape: LayerShape, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best scores, weights and weighted values of every span."""
        size = (len(tiles.rows), shape.kv_heads, tiles.num_spans, tiles.lanes)
        bests, totals = torch.empty((2, *size), dtype=torch.float32, device=self.pages.device).unbind()
        return bests, totals, bests.new_empty(*size, _padded(shape.v_head_dim))


def _lanes(least: int, group: int) -> int:
    """A power of two that holds all query heads of a kv head."""
    return max(least, 1 << (group - 1).bit_length())


def _padded(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def _cut(is_meant: np.ndarray, counts: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows meant as tiles of so many queries: their row and first query, int64 [tiles] each."""
    meant = np.flatnonzero(is_meant)
    tiles = -(-counts[meant] // queries)
    rows = np.repeat(meant, tiles)
    firsts = np.arange(len(rows)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return rows, firsts * queries


def _together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """int64 arrays to the device in one copy."""
    flat = to_device(np.concatenate([array.reshape(-1) for array in arrays]), device)
    parts = flat.split_with_sizes([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
