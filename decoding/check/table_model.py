"""A model whose next-token scores are a hash of everything the cache says came before.

It writes token ids (or a hash of a fed vector) where a real model writes keys and values, and reads them back through
the page tables. So a wrong page, a missed copy or a stale position changes the tokens at once, in microseconds and
exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from decoding.attention.interface import Batch

HIDDEN = 4
_MASK = (1 << 23) - 1  # hashes stay exact in float32, also with a layer index added


@dataclass(frozen=True)
class TableHidden:
    last: torch.Tensor  # [T, HIDDEN] float64: hash of the row's tokens up to here, and directions made from it
    layers: dict[int, torch.Tensor]
    probed: dict[int, torch.Tensor]


@dataclass
class TableAttention:
    page_size: int
    num_pages: int
    stored: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.stored = np.full(self.num_pages * self.page_size, -1, dtype=np.int64)

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        view = self.stored.reshape(self.num_pages, self.page_size)
        sources, targets = [a for a, _ in pairs], [b for _, b in pairs]
        view[targets] = view[sources]


class TableModel:
    """peak: how far the best token stands out; nan_after: a token id after which the row's scores are NaN."""

    encoder = None

    def __init__(
        self, *, vocab: int = 40, page_size: int = 4, num_pages: int = 64, seed: int = 1, nan_after: int | None = None
    ) -> None:
        self.vocab = vocab
        self.attention = TableAttention(page_size, num_pages)
        self._seed = seed
        self._nan_after = nan_after
        self.num_forwards = 0
        self.num_tokens = 0

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        self.num_forwards += 1
        self.num_tokens += batch.num_tokens
        size = self.attention.page_size
        ids = batch.ids_on(torch.device("cpu")).numpy().copy()
        for index, vector in batch.embeds.items():
            ids[index] = 1000 + int(vector.sum().item() * 64) % 1000
        if (self.attention.stored[:size] != -1).any():
            raise AssertionError("page 0 was written")
        self.attention.stored[batch.slots] = ids
        last = np.empty(batch.num_tokens, dtype=np.float64)
        probed = {}
        for r in range(batch.num_rows):
            slots = (batch.page_tables[r][:, None] * size + np.arange(size)).ravel()
            keys = self.attention.stored[slots[: batch.kv_lengths[r]]]
            for t in range(batch.query_starts[r], batch.query_starts[r + 1]):
                last[t] = self._hash(keys[: batch.positions[t] + 1])
            if r in batch.probe_rows:
                probed[r] = torch.from_numpy(keys).float().unsqueeze(0)
        hidden = states(torch.from_numpy(last))
        return TableHidden(hidden, {j: hidden + j for j in layers}, probed)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden[:, :1]
        hashed = hidden.long() * 7919 + torch.arange(self.vocab) * 104729 + self._seed
        mixed = (hashed ^ (hashed >> 13)) * 0x5BD1E995 & 0x7FFFFFFF
        scores = ((mixed ^ (mixed >> 15)) % 1009).float() / 101
        return torch.where(hidden < 0, float("nan"), scores)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden)

    def _hash(self, keys: np.ndarray) -> float:
        if (keys < 0).any():
            raise AssertionError("a position was read that nobody wrote")
        if self._nan_after is not None and keys[-1] == self._nan_after:
            return -1.0
        value = 17
        for key in keys.tolist():
            value = (value * 31 + key + 1) & _MASK
        return float(value)


def states(hashes: torch.Tensor) -> torch.Tensor:  # [T] float64 -> [T, HIDDEN]
    """Each hash and some directions made from it, of its size, so that cosines differ."""
    directions = torch.sin(hashes.unsqueeze(1) * torch.arange(1.0, HIDDEN)) * _MASK
    return torch.cat((hashes.unsqueeze(1), directions), dim=1)


def states_of(model: TableModel, history: Sequence[int]) -> torch.Tensor:
    """The hidden states of every position of a text: [T, HIDDEN]."""
    keys = np.array(history)
    return states(torch.tensor([model._hash(keys[: i + 1]) for i in range(len(keys))], dtype=torch.float64))


class DraftTableModel(TableModel):
    """Agrees with the table model of the same seed on about two positions of three."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        agreed = super().head(hidden)
        return torch.where(hidden[:, :1].long() % 3 == 0, agreed.roll(1, dims=-1), agreed)


def table_token_bytes(vocab: int) -> list[bytes]:
    """A line end, an indent and letters: what stop sequences, answers and the temperatures of code look at."""
    return [b"\n", b"  ", *(bytes([97 + i % 26]) if i % 4 else str(i % 10).encode() for i in range(2, vocab))]
