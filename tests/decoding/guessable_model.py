"""Models to speculate with: one repeats itself, one agrees with another more or less, one has a closed form."""

from __future__ import annotations

import numpy as np
import torch

from decoding.attention.interface import Batch
from tests.decoding.table_model import TableAttention, TableHidden, TableModel

CYCLE = (5, 6, 7, 8, 9)


class CyclingModel(TableModel):
    """Likes to go on with the next id of CYCLE; the rest of its scores hang on the whole past, as ever."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = super().head(hidden)
        nexts = 5 + hidden[:, 0].long() % 5
        scores[torch.arange(len(scores)), nexts] += 7.0
        return scores

    def _hash(self, keys: np.ndarray) -> float:
        base = super()._hash(keys)
        return base if base < 0 else base - base % 5 + (int(keys[-1]) + 1) % 5


class NoisyModel(TableModel):
    """The scores of TableModel(seed=1) and `noise` times those of another seed."""

    def __init__(self, noise: float, *, vocab: int = 40, num_pages: int = 64, page_size: int = 4) -> None:
        super().__init__(vocab=vocab, num_pages=num_pages, page_size=page_size)
        self._noise = noise
        self._other = TableModel(vocab=vocab, seed=77)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden) + self._noise * self._other.head(hidden)


class MarkovModel:
    """Scores that hang on the last id alone, [vocab, vocab] from a seed: what is drawn has a closed form."""

    encoder = None

    def __init__(self, vocab: int, seed: int, num_pages: int) -> None:
        self.logits = torch.randn((vocab, vocab), generator=torch.Generator().manual_seed(seed))
        self.attention = TableAttention(4, num_pages)

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        return TableHidden(batch.ids_on(torch.device("cpu")).unsqueeze(1), {}, {})

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.logits[hidden[:, 0]]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
