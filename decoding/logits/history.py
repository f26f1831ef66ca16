"""What a logits step may know of a row: the ids before the position, and where the prompt ends among them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from decoding.contract.params import PenaltyScope
from decoding.logits.repeats import Repeats

NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class History:
    """ids.

    Int64 [length], prompt first, injected ids left out; valid during one read only (a view of the row's log). repeats:
    the log's, of which the ids are a beginning.
    """

    ids: np.ndarray
    num_prompt: int
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def matched(self) -> np.ndarray:
        """For each position but the last: how many ids up to and with it are those at the end. int32 [length - 1]"""
        return self.repeats.at(self.ids)

    @property
    def output_ids(self) -> np.ndarray:
        return self.ids[self.num_prompt :]

    def within(self, scope: PenaltyScope) -> np.ndarray:
        """The ids that a penalty of that scope looks at."""
        return self.output_ids if scope == "output" else self.ids

    @property
    def num_output(self) -> int:
        return max(len(self.ids) - self.num_prompt, 0)

    def extended(self, ids: list[int]) -> History:
        """The same row after hypothetical ids."""
        repeats = self.repeats.fork()
        repeats.cut(len(self.ids))
        return History(np.concatenate((self.ids, np.asarray(ids, dtype=np.int64))), self.num_prompt, repeats)


def distinct(ids: np.ndarray, vocab: int) -> np.ndarray:
    """Each once, ascending; without sorting them."""
    is_there = np.zeros(vocab, dtype=bool)
    is_there[ids] = True
    return np.flatnonzero(is_there)
