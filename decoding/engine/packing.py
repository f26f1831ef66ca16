"""Rows of all requests -> one ragged forward input.

Knows page tables and positions; nothing of models or strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from decoding.attention.interface import Batch, Memories
from decoding.engine.encoder_memory import EncoderMemory
from decoding.engine.rows import Row


class Span(NamedTuple):  # a tuple, for every row of every tick makes one
    """Positions `start` to `end` of a row's log, to be run in this tick: the next that its table does not count, or
    what a forward launched already will leave as those.
    """

    row: Row
    start: int
    end: int
    is_probed: bool = False

    @property
    def num_tokens(self) -> int:
        return self.end - self.start

    @classmethod
    def next_of(cls, row: Row, count: int, *, is_probed: bool = False) -> Span:
        start = row.table.length
        return cls(row, start, start + count, is_probed)


def pack(spans: Sequence[Span], page_size: int, drawn: torch.Tensor | None = None) -> Batch:
    """Lay the spans end to end. Their page tables must already have room for them.

    drawn: int64 [T], the spans' ids on the device, where the logs do not have them yet.
    """
    starts = np.array([s.start for s in spans], dtype=np.int64)
    counts = np.array([s.end for s in spans], dtype=np.int64) - starts
    if drawn is None:
        ids = np.concatenate([s.row.log.ids[s.start : s.end] for s in spans])
    else:
        ids = np.zeros(counts.sum(), dtype=np.int64)
    tables = _padded([s.row.table.array(-(-s.end // page_size)) for s in spans])
    batch = Batch.of_rows(ids, starts, counts, tables, page_size)
    return replace(
        batch,
        embeds={
            int(batch.query_starts[r]) + position - span.start: vector
            for r, span in enumerate(spans)
            if span.row.embeds
            for position, vector in span.row.embeds.items()
            if span.start <= position < span.end
        },
        probe_rows=tuple(r for r, s in enumerate(spans) if s.is_probed),
        memories=_memories([s.row.memory for s in spans if s.row.memory is not None]),
        drawn=drawn,
    )


def pack_sources(memories: Sequence[EncoderMemory], page_size: int) -> Batch:
    """Lay whole sources end to end. Their memories must already have room for them."""
    counts = np.array([m.length for m in memories], dtype=np.int64)
    tables = _tables_of(memories)
    ids = np.concatenate([m.source_ids for m in memories])
    return Batch.of_rows(ids, np.zeros_like(counts), counts, tables, page_size)


def _memories(memories: Sequence[EncoderMemory]) -> Memories | None:
    """None where the model has no encoder."""
    if not memories:
        return None
    return Memories(np.array([m.length for m in memories], dtype=np.int64), _tables_of(memories))


def _tables_of(memories: Sequence[EncoderMemory]) -> np.ndarray:
    return _padded([m.table.array(len(m.table.pages)) for m in memories])


def _padded(tables: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [rows, longest], padded with page 0."""
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
    for row, pages in zip(padded, tables, strict=True):
        row[: len(pages)] = pages
    return padded
