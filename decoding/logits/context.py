"""What the steps of a pipeline may know of their rows beside the scores they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.device import indices
from decoding.logits.history import History


@dataclass(frozen=True, slots=True)
class Context:
    """One history per row, and the scores as they entered the pipeline.

    untouched: [all rows, vocab], which nobody writes to. rows: those of them that are meant, None for all.
    """

    histories: Sequence[History]
    untouched: torch.Tensor
    rows: Sequence[int] | None = None

    @property
    def raw(self) -> torch.Tensor:
        """The scores before any step, [rows, vocab]; copied only when somebody asks."""
        return self.untouched if self.rows is None else self.untouched[indices(self.rows, self.untouched.device)]

    def of(self, indices: Sequence[int]) -> Context:
        """The same for some of the rows."""
        rows = indices if self.rows is None else [self.rows[i] for i in indices]
        return Context([self.histories[i] for i in indices], self.untouched, rows)
