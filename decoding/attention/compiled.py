"""Paged attention on the CPU by the compiled kernel: no gathering, every query computed by itself.

Owns the plan's records and the threads' scratch memory. The arithmetic is that of `kernels/cpu/attend.py`, in float32
or, over bfloat16 pages, of bfloat16 numbers with float32 sums; a whole fused layer (`fused.py`) uses the same pages and
plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from decoding.attention.interface import Batch, LayerSpec, PagedAttention
from decoding.attention.kernel_pages import KernelPages, padded
from decoding.attention.pages import LayerShape
from decoding.attention.pieces import ITEMS_A_THREAD, cut
from decoding.kernels.cpu.attend import ATTENTION, BATCH, STEPS, TILE_ROWS, attends, attention, room_bytes, writes
from decoding.kernels.cpu.sharing import COUNTS_BYTES
from decoding.kernels.cpu.team import Team, default_team

NO_WINDOW = 1 << 40
PIECES_A_THREAD = 4  # at least, if none is cut by heads


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


class CompiledAttention(PagedAttention):
    fuses_layers = True
    keeps_bfloat16 = True

    def __init__(
        self, shapes: Sequence[LayerShape], team: Team | None = None, *, dtype: torch.dtype = torch.float32
    ) -> None:
        """dtype: of the pages, float32 or bfloat16."""
        self._kernel_pages = KernelPages(shapes, dtype)
        super().__init__(self._kernel_pages)
        self.team = team or default_team()
        self.shapes = self.pages.shapes
        self._room = max(room_bytes(s.heads, s.kv_heads, s.head_dim, padded(s.v_head_dim)) for s in shapes)
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
        kv_heads = min(s.kv_heads for s in self.shapes)
        pieces, parts = cut(batch, most, -(-ITEMS_A_THREAD * self.team.size // kv_heads))
        tables = np.ascontiguousarray(batch.page_tables)
        slots = np.ascontiguousarray(batch.slots)
        counts = np.zeros((len(self.shapes), STEPS, COUNTS_BYTES // 8), np.int64)
        record = np.zeros(1, BATCH)
        record[0] = (
            batch.num_tokens,
            slots.ctypes.data,
            pieces.ctypes.data,
            len(pieces),
            parts.ctypes.data,
            tables.ctypes.data,
            tables.shape[1],
            self._scratch.ctypes.data,
            self._room,
            counts.ctypes.data,
            self._keeps_heads(pieces, parts),
        )
        return CompiledPlan(record, (pieces, parts, tables, slots), counts, batch)

    def _keeps_heads(self, pieces: np.ndarray, parts: np.ndarray) -> bool:
        """Whether there is room for all heads of a piece, and enough pieces for every thread."""
        tokens = np.add.reduceat(parts[:, 2], pieces[:, 0]).max()
        fits = tokens * max(shape.heads for shape in self.shapes) <= TILE_ROWS
        return bool(fits and len(pieces) >= PIECES_A_THREAD * self.team.size)

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
        pages = batch.page_tables[row, : -(-keys // self.page_size)]
        found = self._kernel_pages.keys_of(spec.layer, pages)  # [kv_heads, dim, keys]
        grouped = query.to(self.pages.dtype).float().view(found.shape[0], -1, query.shape[-1])
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
        record["v_width"] = padded(shape.v_head_dim)
        record["window"] = spec.sliding_window or NO_WINDOW
        if spec.sinks is not None:
            if spec.sinks.numel() != shape.heads:
                raise ValueError(f"{shape.heads} heads were given {spec.sinks.numel()} sinks")
            self._sinks[spec.layer] = spec.sinks.detach().float().contiguous()
            record["sinks"] = self._sinks[spec.layer].data_ptr()
        record["scaling"], record["softcap"] = spec.scaling, spec.softcap or 0.0
        record["write"], record["attend"] = (each[self._kernel_pages.form].address for each in (writes, attends))
        return record


def _readable(part: torch.Tensor) -> torch.Tensor:
    part = part.float()
    return part if part.stride(3) == 1 else part.contiguous()
