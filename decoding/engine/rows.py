"""A row: one token sequence, its log of everything fed, and its page table.

The log is the truth; the KV cache only mirrors it. Positions the cache lacks (`num_pending`) are fed by the coming
ticks, so chunked prefill, decode and re-feeding after a preemption are one and the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from decoding.engine.cache import PageTable
from decoding.engine.encoder_memory import EncoderMemory
from decoding.logits.repeats import Repeats
from decoding.seam import RowId

EMBED_ID = 0
"""The id written into the log where an embedding was fed; such positions are injected, so nothing reads it."""


class TokenLog:
    """A growing int64 array of token ids with amortised appends, and which of them were injected.

    repeats: of what is left without those.
    """

    __slots__ = ("_ids", "injected", "length", "repeats")

    def __init__(self) -> None:
        self._ids = np.empty(64, dtype=np.int64)
        self.length = 0
        self.injected: frozenset[int] = frozenset()
        self.repeats = Repeats()

    @property
    def ids(self) -> np.ndarray:
        """A view of the ids so far, int64 [length]; valid until the next append."""
        return self._ids[: self.length]

    def append(self, ids: tuple[int, ...], *, is_injected: bool) -> None:
        end = self.length + len(ids)
        if end > len(self._ids):
            grown = np.empty(max(end, 2 * len(self._ids)), dtype=np.int64)
            grown[: self.length] = self.ids
            self._ids = grown
        if len(ids) == 1:
            self._ids[self.length] = ids[0]  # a slice takes five times as long
        else:
            self._ids[self.length : end] = ids
        if is_injected:
            self.injected |= frozenset(range(self.length, end))
        self.length = end
        self.repeats.grow()

    def truncate(self, length: int) -> None:
        self.length = length
        if self.injected:
            self.injected = frozenset(p for p in self.injected if p < length)
        self.repeats.cut(length - len(self.injected))

    def fork(self) -> TokenLog:
        twin = TokenLog()
        twin._ids = self._ids[: max(64, self.length + 64)].copy()
        twin.length = self.length
        twin.injected = self.injected
        twin.repeats = self.repeats.fork()
        return twin

    def history(self, length: int) -> np.ndarray:
        """The first `length` ids without the injected ones: what penalties and counts see. int64 [<= length]"""
        ids = self._ids[:length]
        if not self.injected:
            return ids
        keep = np.ones(length, dtype=bool)
        keep[[p for p in self.injected if p < length]] = False
        return ids[keep]


@dataclass(slots=True, eq=False)
class Row:
    """num_prompt: how many tokens of the log its opening feed brought. embeds: position -> fed vector [hidden].

    memory: what it reads of its source, where the model has an encoder.
    """

    id: RowId
    model: str
    log: TokenLog = field(default_factory=TokenLog)
    table: PageTable = field(default_factory=PageTable)
    num_prompt: int = 0
    embeds: dict[int, torch.Tensor] = field(default_factory=dict)
    memory: EncoderMemory | None = None

    @property
    def num_pending(self) -> int:
        """Positions in the log that the cache does not hold yet."""
        return self.log.length - self.table.length

    def salted(self, salt: bytes) -> bytes:
        """The salt of its request, and what else its keys and values depend on beside its tokens."""
        return salt if self.memory is None else salt + self.memory.mark

    @property
    def indexable_length(self) -> int:
        """Positions that token ids alone explain: the prefix index must not cover an embedding or what follows it."""
        return min(self.embeds, default=self.log.length)

    def truncate_log(self, length: int) -> None:
        self.log.truncate(length)
        self.embeds = {p: v for p, v in self.embeds.items() if p < length}

    def append_embeds(self, embeds: torch.Tensor) -> None:  # [m, hidden]
        start = self.log.length
        self.log.append((EMBED_ID,) * len(embeds), is_injected=True)
        self.embeds = self.embeds | {start + i: vector for i, vector in enumerate(embeds)}
