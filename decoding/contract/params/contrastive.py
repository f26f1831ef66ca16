"""Contrastive search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decoding.contract.params.invalid import check


@dataclass(frozen=True, slots=True)
class Contrastive:
    """Contrastive search (Su et al. 2022, arXiv 2202.06417): of the k likeliest tokens the one that repeats least."""

    NAME: ClassVar[str] = "contrastive"

    penalty_alpha: float
    k: int

    def __post_init__(self) -> None:
        check(0 <= self.penalty_alpha <= 1, "penalty_alpha", "must lie in [0, 1]")
        check(self.k >= 1, "top_k", "must be at least 1")

    @property
    def n(self) -> int:
        return 1

    @property
    def max_rows(self) -> int:
        return self.k
