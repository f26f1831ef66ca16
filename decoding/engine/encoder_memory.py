"""What an encoder leaves of a request's source: keys and values for cross-attention, in pages of the decoder's cache.

One per source of a request and model, written once by the encoder and then only read, by every row that has that
source; forks share it by sharing the object. A preempted request gives its pages back and is encoded again, with the
same result.
"""

from __future__ import annotations

import hashlib
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
