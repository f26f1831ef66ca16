"""Sampling, and ranking what was sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import MAX_INT, Named, Says, Within
from decoding.contract.params.invalid import check

RankBy = Literal["mean", "sum"]
RANKINGS = get_args(RankBy)


@dataclass(frozen=True, slots=True)
class Sampling(StrategyParams):
    """Multinomial sampling, or greedy at temperature 0; `n` independent choices share the prompt's pages."""

    NAME = "sampling"

    n: Choices = 1


@dataclass(frozen=True, slots=True)
class BestOf(StrategyParams):
    """Sample `best_of` choices, return the `n` best by raw log-prob. rank_by: a RankBy, or a judge's name."""

    NAME = "best_of"

    # fmt: off
    n: Choices = 1
    best_of: Annotated[
        int, Within(1, MAX_INT),
        Says("Choices sampled, of which the n best are returned. With use_beam_search: beams."),
    ] = 1
    rank_by: Annotated[str, Named("best_of_rank"), Says("Rank by log-prob per token or in all.")] = "mean"
    # fmt: on

    def _check(self) -> None:
        check(self.best_of >= self.n, "best_of", "must not be less than n")

    @property
    def max_rows(self) -> int:
        return self.best_of
