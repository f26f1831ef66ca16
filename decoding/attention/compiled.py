"""Paged attention on the CPU by the compiled kernel: float32, no gathering, every query computed by itself.

Owns the pages in the kernel's layout, the plan's records and the threads' scratch memory. The arithmetic is
`kernels/attend.py`'s; a whole fused layer (`fused.py`) uses the same pages and plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from decoding.attention.interface import Batch, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape, Pages
from decoding.kernels.cpu.arena import lazy_zeros
from decoding.kernels.cpu.attend import (
    ATTENTION,
    BATCH,
    PAGE,
    STEPS,
    TILE_ROWS,
    attend,
    attention,
    room_bytes,
)
from decoding.kernels.cpu.sharing import COUNTS_BYTES
from decoding.kernels.cpu.team import Team, default_team
from decoding.kernels.cpu.tile import PANEL

NO_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """Arrays stay here for as long as the record holds their addresses."""

    record: np.ndarray  # BATCH [1]
    arrays: tuple[np.ndarray, ...]
    counts: np.ndarray  # int64 [layers, STEPS, COUNTS_BYTES / 8]
    batch: Batch
    scores: dict[int, torch.Tensor] = field(default_factory=dict)  # filled by the last layer

    @property
    def address(self) -> int:
        return int(self.record.ctypes.data)


class KernelPages(Pages):
    """In the layout that the kernel reads: keys [num_pages, kv_heads, head_dim, PAGE], values padded to panels.

    The kernel writes them itself.
    """

    def __init__(self, shapes: Sequence[LayerShape]) -> None:
        super().__init__(shapes, PAGE, torch.float32, torch.device("cpu"))

    def allocate(self, num_pages: int) -> None:
        self.keys = [lazy_zeros(num_pages, s.kv_heads, s.head_dim, PAGE) for s in self.shapes]
        self.values = [lazy_zeros(num_pages, s.kv_heads, PAGE, _padded(s.v_head_dim)) for s in self.shapes]

    def bytes_per_page(self) -> int:
        return sum(4 * PAGE * s.kv_heads * (s.head_dim + _padded(s.v_head_dim)) for s in self.shapes)


class CompiledAttention(PagedAttention):
    fuses_layers = True

    def __init__(self, shapes: Sequence[LayerShape], team: Team | None = None) -> None:
        super().__init__(KernelPages(shapes))
        self.team = team or default_team()
        self.shapes = self.pages.shapes
        self._room = max(room_bytes(s.heads, s.kv_heads, s.head_dim, _padded(s.v_head_dim)) for s in shapes)
        self._room += -self._room % 64
        self._scratch = np.zeros(self._room * self.team.size // 8, np.int64)
        self._records: dict[int, tuple[LayerSpec, np.ndarray]] = {}
        self._sinks: dict[int, torch.Tensor] = {}
        self._kernel = attention.address

    def allocate(self, num_pages: int) -> None:
        self._records = {}
        super().allocate(num_pages)

    def plan(self, batch: Batch) -> CompiledPlan:
        most = min(max(1, TILE_ROWS * s.kv_heads // s.heads) for s in self.shapes)
        pieces = cut(batch, most)
        tables = np.ascontiguousarray(batch.page_tables)
        slots = np.ascontiguousarray(batch.slots)
        counts = np.zeros((len(self.shapes), STEPS, COUNTS_BYTES // 8), np.int64)
        record = np.zeros(1, BATCH)
        record[0] = (
            batch.num_tokens,
            slots.ctypes.data,
            pieces.ctypes.data,
            len(pieces),
            tables.ctypes.data,
            tables.shape[1],
            self._scratch.ctypes.data,
            self._room,
            counts.ctypes.data,
        )
        return CompiledPlan(record, (pieces, tables, slots), counts, batch)

    def forward(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: CompiledPlan
    ) -> torch.Tensor:
        self._check(spec, query, key, value, plan)
        parts = [_readable(part) for part in (query, key, value)]
        out = parts[0].new_empty(query.shape[2], query.shape[1], value.shape[3])
        record = self._record(spec)
        words = record.view(np.int64)
        words[1:5] = (*(part.data_ptr() for part in parts), out.data_ptr())
        words[5:12] = (*(4 * part.stride(axis) for part in parts for axis in (2, 1)), plan.address)
        plan.counts[spec.layer].fill(0)
        self.team.run(self._kernel, record.ctypes.data)
        self.probe(spec, parts[0][0].transpose(0, 1), plan)
        return out[None].to(value.dtype)

    def _check(
        self, spec: LayerSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: CompiledPlan
    ) -> None:
        """The kernel goes by the layer's shape, and would read and write past the ends of any other."""
        shape, tokens = self.shapes[spec.layer], plan.batch.num_tokens
        wanted = [
            (1, shape.heads, tokens, shape.head_dim),
            (1, shape.kv_heads, tokens, shape.head_dim),
            (1, shape.kv_heads, tokens, shape.v_head_dim),
        ]
        found = [tuple(part.shape) for part in (query, key, value)]
        if found != wanted:
            raise ValueError(f"layer {spec.layer} attends with {found} where its shapes are {wanted}")

    def _record(self, spec: LayerSpec) -> np.ndarray:
        known, record = self._records.get(spec.layer, (None, None))
        if known is not spec or record is None:
            record = self.new_record(spec)
            self._records[spec.layer] = (spec, record)
        return record

    def probe(self, spec: LayerSpec, queries: torch.Tensor, plan: CompiledPlan) -> None:
        """In the last layer, keep the scores of each probed row's last query: queries [T, heads, head_dim]."""
        if not self._is_last(spec.layer):
            return
        for row in plan.batch.probe_rows:
            last = int(plan.batch.query_starts[row + 1]) - 1
            plan.scores[row] = self._scores(spec, queries[last], int(plan.batch.kv_lengths[row]), plan.batch, row)

    def _scores(self, spec: LayerSpec, query: torch.Tensor, keys: int, batch: Batch, row: int) -> torch.Tensor:
        """query [heads, head_dim] -> scaled, capped and masked scores [heads, keys]."""
        pages = torch.from_numpy(batch.page_tables[row, : -(-keys // PAGE)])
        found = self.pages.keys[spec.layer].index_select(0, pages)
        found = found.permute(1, 2, 0, 3).flatten(2)  # [kv_heads, dim, keys]
        grouped = query.view(found.shape[0], -1, query.shape[-1])
        scores = (grouped @ found).flatten(0, 1)[:, :keys] * spec.scaling
        if spec.softcap is not None:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        if spec.sliding_window is not None:
            scores[:, : max(0, keys - spec.sliding_window)] = float("-inf")
        return scores

    def new_record(self, spec: LayerSpec) -> np.ndarray:
        """An ATTENTION record, valid until the next `allocate`; tensors, strides and batch are left to the caller."""
        shape = self.shapes[spec.layer]
        record = np.zeros(1, ATTENTION)
        record["key_pages"] = self.pages.keys[spec.layer].data_ptr()
        record["value_pages"] = self.pages.values[spec.layer].data_ptr()
        record["layer"] = spec.layer
        record["heads"], record["kv_heads"] = shape.heads, shape.kv_heads
        record["head_dim"], record["v_head_dim"] = shape.head_dim, shape.v_head_dim
        record["v_width"] = _padded(shape.v_head_dim)
        record["window"] = spec.sliding_window or NO_WINDOW
        if spec.sinks is not None:
            if spec.sinks.numel() != shape.heads:
                raise ValueError(f"{shape.heads} heads were given {spec.sinks.numel()} sinks")
            self._sinks[spec.layer] = spec.sinks.detach().float().contiguous()
            record["sinks"] = self._sinks[spec.layer].data_ptr()
        record["scaling"], record["softcap"] = spec.scaling, spec.softcap or 0.0
        record["attend"] = attend.address
        return record


def cut(batch: Batch, most: int) -> np.ndarray:
    """Every row as pieces of at most so many queries, longest keys first: int64 [pieces, 4], as BATCH says."""
    counts = np.diff(batch.query_starts)
    if most == 1 or counts.max() == 1:
        rows = np.repeat(np.arange(len(counts)), counts)
        found = np.stack([rows, np.arange(batch.num_tokens), np.ones_like(rows), batch.positions], 1)
    else:
        found = np.array(list(_pieces(batch, most)), np.int64)
    return np.ascontiguousarray(found[np.argsort(-found[:, 3], kind="stable")])


def _pieces(batch: Batch, most: int) -> Iterator[tuple[int, int, int, int]]:
    for row, (start, end) in enumerate(pairwise(batch.query_starts.tolist())):
        for token in range(start, end, most):
            yield row, token, min(most, end - token), int(batch.positions[token])


def _padded(width: int) -> int:
    return width + -width % PANEL


def _readable(part: torch.Tensor) -> torch.Tensor:
    part = part.float()
    return part if part.stride(3) == 1 else part.contiguous()
