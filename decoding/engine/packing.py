"""Rows of all requests -> one ragged forward input.

Knows page tables and positions; nothing of models or strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.attention.interface import Batch, Memories
from decoding.engine.encoder_memory import EncoderMemory
from decoding.engine.encoder_memory import page_tables as memory_tables
from decoding.engine.rows import Row


@dataclass(frozen=True, slots=True)
class Span:
    """The next `count` pending positions of a row, to be run in this tick.

    lead: positions before them that a forward launched already is writing, and which the table does not count yet.
    """

    row: Row
    count: int
    is_probed: bool = False
    lead: int = 0

    @property
    def start(self) -> int:
        return self.row.table.length + self.lead

    @property
    def end(self) -> int:
        return self.start + self.count


def pack(spans: Sequence[Span], page_size: int, drawn: torch.Tensor | None = None) -> Batch:
    """Lay the spans end to end. Their page tables must already have room for them.

    drawn: int64 [T], the spans' ids on the device, where the logs do not have them yet.
    """
    counts = np.array([s.count for s in spans], dtype=np.int64)
    starts = np.array([s.start for s in spans], dtype=np.int64)
    query_starts = np.zeros(len(spans) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_starts[1:])
    tables = _page_tables(spans, page_size)
    row_of = np.repeat(np.arange(len(spans)), counts)
    positions = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - starts, counts)
    ids = [s.row.log.ids[s.start : s.end] for s in spans] if drawn is None else [np.zeros_like(positions)]
    return Batch(
        token_ids=np.concatenate(ids),
        positions=positions,
        slots=tables[row_of, positions // page_size] * page_size + positions % page_size,
        query_starts=query_starts,
        kv_lengths=starts + counts,
        page_tables=tables,
        embeds={
            int(query_starts[r]) + position - span.start: vector
            for r, span in enumerate(spans)
            for position, vector in span.row.embeds.items()
            if span.start <= position < span.end
        },
        probe_rows=tuple(r for r, s in enumerate(spans) if s.is_probed),
        memories=_memories([s.row.memory for s in spans]),
        drawn=drawn,
    )


def pack_sources(memories: Sequence[EncoderMemory], page_size: int) -> Batch:
    """Lay whole sources end to end. Their memories must already have room for them."""
    lengths = np.array([m.length for m in memories], dtype=np.int64)
    query_starts = np.concatenate(([0], np.cumsum(lengths)))
    tables = memory_tables(memories)
    row_of = np.repeat(np.arange(len(memories)), lengths)
    positions = np.arange(query_starts[-1]) - query_starts[row_of]
    return Batch(
        token_ids=np.concatenate([m.source_ids for m in memories]),
        positions=positions,
        slots=tables[row_of, positions // page_size] * page_size + positions % page_size,
        query_starts=query_starts,
        kv_lengths=lengths,
        page_tables=tables,
    )


def _memories(memories: Sequence[EncoderMemory | None]) -> Memories | None:
    """None where the model has no encoder."""
    present = [m for m in memories if m is not None]
    if not present:
        return None
    return Memories(np.array([m.length for m in present], dtype=np.int64), memory_tables(present))


def _page_tables(spans: Sequence[Span], page_size: int) -> np.ndarray:
    """int64 [rows, longest]: only the pages that the row's keys reach, padded with page 0."""
    needed = [-(-s.end // page_size) for s in spans]
    tables = np.zeros((len(spans), max(needed)), dtype=np.int64)
    for r, (span, count) in enumerate(zip(spans, needed, strict=True)):
        tables[r, :count] = span.row.table.pages[:count]
    return tables
