"""What an encoder leaves of a request's source: keys and values for cross-attention, in pages of the decoder's cache.

One per source of a request and model, written once by the encoder and then only read, by every row that has that
source; forks share it by sharing the object. A preempted request gives its pages back and is encoded again, with the
same result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from decoding.engine.cache import PageTable


@dataclass(slots=True, eq=False)
class EncoderMemory:
    """The pages of `table` hold the source's positions, all of them or none.

    mark: tells keys and values of rows that read it from those of rows that read the request's own source.
    """

    model: str
    source_ids: np.ndarray  # int64 [S]
    table: PageTable = field(default_factory=PageTable)
    mark: bytes = b""

    @property
    def length(self) -> int:
        return len(self.source_ids)

    @property
    def is_filled(self) -> bool:
        return self.table.length == self.length


def source_digest(source_ids: np.ndarray) -> bytes:
    """What tells keys and values that depend on this source from those that depend on another."""
    return b"/" + hashlib.blake2b(source_ids.tobytes()).digest()


def page_tables(memories: Sequence[EncoderMemory]) -> np.ndarray:
    """int64 [memories, longest], padded with page 0."""
    tables = np.zeros((len(memories), max(len(m.table.pages) for m in memories)), dtype=np.int64)
    for row, memory in zip(tables, memories, strict=True):
        row[: len(memory.table.pages)] = memory.table.pages
    return tables
