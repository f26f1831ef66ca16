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
from decoding.kernels.gpu.pages import copy

ENOUGH_PROGRAMS = 256
"""About two for each of a GPU's multiprocessors: with as many, splitting by keys wins nothing but where a row is much
longer than the others, or rows have spans in common."""
PROGRAMS_A_TILE = 8
"""Of such a batch: many more would find nothing to do in most rows."""
SKEW = 4
"""Splitting pays where the longest row is so many times the mean."""
TABLE_BLOCK = 256
"""Pages of two tables that are compared at once."""
COPIED = 4096
"""Numbers of a page that are copied at once."""


@dataclass(frozen=True, slots=True)
class Program:
    """lanes: query heads, of one kv head. block_bytes: most of one product's keys. stages: of the loop over blocks."""

    lanes: int
    warps: int
    block_bytes: int
    stages: int


# Keys and values are found through the page table, whose reading takes stages of its own: with Triton's three there is
# one buffer of each, and nothing is loaded while products are computed. What fits into registers the tests know.
DECODE = Program(lanes=16, warps=4, block_bytes=16384, stages=5)
"""As few lanes as a tensor core takes."""
PREFILL = Program(lanes=64, warps=8, block_bytes=8192, stages=5)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries that share programs.

    common: what the tiles' rows, of one query each, have in common (`find_common` says how much); empty where that is
    not asked.
    """

    rows: torch.Tensor  # int64 [tiles]
    queries: torch.Tensor  # int64 [tiles]   the tile's first query in its row
    common: torch.Tensor  # int64 [tiles] or [0]
    program: Program
    num_spans: int  # of the longest row
    num_programs: int  # that take turns at a tile's spans; 1: not split

    @property
    def is_split(self) -> bool:
        return self.num_programs > 1

    @property
    def shares(self) -> bool:
        return len(self.common) > 0


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

    block: the most keys of one product. span: keys summed up before they are merged with others, of the first spans;
    further on spans grow with the position, the same whatever the batch.
    """

    is_capturable = True
    knows_biases = True

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
        self._prefill = DECODE if is_uniform or dtype == torch.float32 else PREFILL
        # Not where one kernel's sums must be another's to the bit: a compiler contracts each as it likes.
        self._is_fused = not is_uniform
        self._precision = _precision(device, dtype)
        self._groups = sorted({shape.group for shape in shapes})
        self._most_kv_heads = max(shape.kv_heads for shape in shapes)

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Where a page is both read and written, torch reads all of them first."""
        if not pairs or {source for source, _ in pairs} & {destination for _, destination in pairs}:
            super().copy_pages(pairs)
            return
        moves = to_device(np.asarray(pairs, dtype=np.int64), self.pages.device)
        for stack in self.pages.stacks:
            copy[(len(pairs), len(stack))](stack, moves, stack.shape[1], stack[0, 0].numel(), COPIED)

    def plan(self, batch: Batch) -> TritonPlan:
        counts = np.diff(batch.query_starts)
        decoding, prefilling = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
        arrays = [batch.slots, batch.query_starts, batch.kv_lengths, batch.page_tables]
        for group in self._groups:
            arrays += _cut(decoding, counts, 1)
            arrays += _cut(prefilling, counts, _lanes(self._prefill.lanes, group) // group)
        slots, starts, lengths, tables, *cuts = _together(arrays, self.pages.device)
        longest = int(batch.kv_lengths.max())
        is_uneven = self._is_uneven(batch, decoding), _is_skewed(batch.kv_lengths[prefilling])
        tiles = {}
        for at, group in enumerate(self._groups):
            rows, queries, many_rows, many_queries = cuts[4 * at : 4 * at + 4]
            decode = self._tiles(rows, queries, DECODE, longest, is_uneven=is_uneven[0], shares=True)
            prefill = self._tiles(many_rows, many_queries, self._prefill, longest, is_uneven=is_uneven[1])
            tiles[group] = tuple(each for each in (decode, prefill) if len(each.rows))
        probes = {row: plan_row(batch, row, self.pages) for row in batch.probe_rows}
        return TritonPlan(slots, starts, lengths, tables, tiles, probes, {})

    def decode_plan(self, inputs: DecodeInputs) -> TritonPlan:
        """A plan over tensors whose contents may change from one run to the next.

        What its rows will have in common is not known, nor whether one is much longer than others: more than one span
        is always split.
        """
        num_rows, num_pages = inputs.page_tables.shape
        starts = torch.arange(num_rows + 1, device=self.pages.device)
        queries = torch.zeros(num_rows, dtype=torch.int64, device=self.pages.device)
        longest = num_pages * self.page_size
        decode = self._tiles(starts[:-1], queries, DECODE, longest, is_uneven=True, shares=True)
        tiles: dict[int, tuple[Tiles, ...]] = dict.fromkeys(self._groups, (decode,))
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
        if spec.layer == 0:
            self._find_common(plan)
        for tiles in plan.tiles[shape.group]:
            self._launch(spec, query[0], out, tiles, plan)
        if self._is_last(spec.layer):
            for index, row in plan.probes.items():
                last = replace(row, query_positions=row.query_positions[-1:])
                plan.scores[index] = attend(spec, query[0, :, row.tokens][:, -1:].float(), last, self.pages)[0][:, 0]
        return out[None]

    def _tiles(
        self,
        rows: torch.Tensor,
        queries: torch.Tensor,
        program: Program,
        longest: int,
        *,
        is_uneven: bool,
        shares: bool = False,
    ) -> Tiles:
        spans = num_spans(longest, self._span)
        num_programs = 1
        if len(rows) * self._most_kv_heads < ENOUGH_PROGRAMS:
            num_programs = spans
        elif is_uneven:
            num_programs = min(spans, PROGRAMS_A_TILE)
        common = rows.new_empty(len(rows) if shares and num_programs > 1 else 0)
        return Tiles(rows, queries, common, program, spans, num_programs)

    def _is_uneven(self, batch: Batch, rows: np.ndarray) -> bool:
        """Of rows that decode: a few are much longer than the others, or many begin with the same span."""
        lengths, spans = batch.kv_lengths[rows], batch.page_tables[rows, : self._span // self.page_size]
        is_sibling = (spans[1:] == spans[:-1]).all(1) & (lengths[1:] > self._span)
        return _is_skewed(lengths) or 4 * int(is_sibling.sum()) > len(rows)

    def _find_common(self, plan: TritonPlan) -> None:
        """Once a forward, in its first layer; on the device, for a recorded plan's tables change."""
        for tiles in {id(each): each for every in plan.tiles.values() for each in every}.values():
            if tiles.shares:
                kernels.find_common[(len(tiles.rows),)](
                    tiles.common, tiles.rows, plan.kv_lengths, plan.page_tables, plan.page_tables.stride(0),
                    self.page_size, TABLE_BLOCK,
                )  # fmt: skip

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
        shape = self.pages.shapes[spec.layer]
        sinks, biases = (out if given is None else given for given in (spec.sinks, spec.bias))
        scratch = self._scratch(shape, tiles) if tiles.is_split else (out, out, out)
        options: dict[str, Any] = {
            "window": spec.sliding_window or 0, "GROUP": shape.group, "SPAN": self._span,
            "V_DIM": _padded(shape.v_head_dim), "HAS_SINKS": spec.sinks is not None,
            "enable_fp_fusion": self._is_fused,
        }  # fmt: skip
        grid, program = (len(tiles.rows), shape.kv_heads), tiles.program
        kernels.attend[(*grid, tiles.num_programs)](
            out, query, self.pages.keys[spec.layer], self.pages.values[spec.layer],
            tiles.rows, tiles.queries, plan.query_starts, plan.kv_lengths, plan.page_tables, tiles.common,
            sinks, biases, *scratch,
            query.stride(0), query.stride(1), out.stride(0), plan.page_tables.stride(0),
            len(tiles.rows), tiles.num_spans, biases.shape[-1], spec.scaling,
            shape.head_dim, shape.v_head_dim, self.page_size, softcap=spec.softcap or 0.0,
            M=_lanes(program.lanes, shape.group), DIM=_padded(shape.head_dim), BLOCK=self._block_for(shape, program),
            HAS_BIAS=spec.bias is not None, IS_SPLIT=tiles.is_split, SHARES=tiles.shares, PRECISION=self._precision,
            num_warps=program.warps, num_stages=program.stages, **options,
        )  # fmt: skip
        if tiles.is_split:
            kernels.combine[(*grid, _queries_kept(tiles, shape.group))](
                out, tiles.rows, tiles.queries, plan.query_starts, plan.kv_lengths, sinks, *scratch,
                out.stride(0), tiles.num_spans, shape.v_head_dim, LANES=_lanes(1, shape.group), **options,
            )  # fmt: skip

    def _block_for(self, shape: LayerShape, program: Program) -> int:
        """Fewer keys a product where heads are wide: a multiprocessor holds several blocks of keys and values."""
        fitting = program.block_bytes // (_padded(max(shape.head_dim, shape.v_head_dim)) * self.pages.dtype.itemsize)
        return min(self._block, max(16, fitting))

    def _scratch(self, shape: LayerShape, tiles: Tiles) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best scores, weights and weighted values of every span."""
        kept = _queries_kept(tiles, shape.group) * shape.group
        size = (len(tiles.rows), shape.kv_heads, tiles.num_spans, kept)
        bests, totals = torch.empty((2, *size), dtype=torch.float32, device=self.pages.device).unbind()
        return bests, totals, bests.new_empty(*size, _padded(shape.v_head_dim))


def _precision(device: torch.device, dtype: torch.dtype) -> str:
    """Of products. Tensor cores take no float32, but each number as two that they take, three products for one."""
    if device.type == "cpu":
        return "wide"
    return "tf32x3" if dtype == torch.float32 else "ieee"


def num_spans(keys: int, span: int) -> int:
    """Of so many keys: as `span_of` counts them."""
    size: int = kernels.SPANS_A_SIZE.value
    last = (keys - 1) // span
    doublings = (last // (2 * size)).bit_length()
    return size * doublings + (last >> doublings) + 1


def _is_skewed(lengths: np.ndarray) -> bool:
    """Whoever walks the longest row alone is waited for."""
    return len(lengths) > 0 and int(lengths.max()) > SKEW * float(lengths.mean())


def _queries_kept(tiles: Tiles, group: int) -> int:
    """Of a split tile, in its place in the scratch: where rows attend together, each has a tile of its own."""
    return 1 if tiles.shares else _lanes(tiles.program.lanes, group) // group


def _lanes(least: int, group: int) -> int:
    """A power of two that holds all query heads of a kv head."""
    return max(least, 1 << (group - 1).bit_length())


def _padded(dim: int) -> int:
    return max(16, 1 << (dim - 1).bit_length())


def _cut(meant: np.ndarray, counts: np.ndarray, queries: int) -> list[np.ndarray]:
    """The rows meant as tiles of so many queries: their row and first query, int64 [tiles] each."""
    tiles = -(-counts[meant] // queries)
    rows = np.repeat(meant, tiles)
    firsts = np.arange(len(rows)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    return [rows, firsts * queries]


def _together(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """int64 arrays to the device in one copy."""
    flat = to_device(np.concatenate([array.reshape(-1) for array in arrays]), device)
    parts = flat.split_with_sizes([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
