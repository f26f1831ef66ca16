"""What a logits step may know of a row: the ids before the position, and where the prompt ends among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoding.params import PenaltyScope

NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class History:
    """ids.

    Int64 [length], prompt first, injected ids left out; valid during one read only (a view of the row's log).
    """

    ids: np.ndarray
    num_prompt: int

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
        return History(np.concatenate((self.ids, np.asarray(ids, dtype=np.int64))), self.num_prompt)
