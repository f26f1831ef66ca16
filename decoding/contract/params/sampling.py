"""Sampling, and ranking what was sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.invalid import check

RankBy = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Multinomial sampling, or greedy at temperature 0; `n` independent choices share the prompt's pages."""

    NAME: ClassVar[str] = "sampling"

    n: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")

    @property
    def max_rows(self) -> int:
        return self.n


@dataclass(frozen=True, slots=True)
class BestOf:
    """Sample `best_of` choices, return the `n` best by raw log-prob (Adiwardana et al. 2020, arXiv 2001.09977)."""

    NAME: ClassVar[str] = "best_of"

    n: int = 1
    best_of: int = 1
    rank_by: RankBy = "mean"

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check(self.best_of >= self.n, "best_of", "must not be less than n")

    @property
    def max_rows(self) -> int:
        return self.best_of
