"""Order among finished candidates, and what a length costs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.params import RankBy
from decoding.params.beams import LengthPenaltyType


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished sequence's index and the raw log-probs of its tokens, an ending EOS included."""

    index: int
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.logprobs)

    def score(self, rank_by: RankBy) -> float:
        """sum: total log-prob (Meena); mean: log-prob per token (OpenAI's best_of). An empty sequence scores 0."""
        return self.total / len(self.logprobs) if rank_by == "mean" and self.logprobs else self.total


def best(candidates: Sequence[Candidate], n: int, rank_by: RankBy) -> list[Candidate]:
    """The n best, best first; the lower index among equals."""
    return sorted(candidates, key=lambda c: (-c.score(rank_by), c.index))[:n]


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """lp(Y) = |Y| ** alpha ("hf"), or ((5 + |Y|) / 6) ** alpha ("gnmt", arXiv 1609.08144); |Y| counts an ending EOS."""

    alpha: float
    kind: LengthPenaltyType = "hf"

    def score(self, total: float, length: int) -> float:
        """A total log-prob over the penalty of its length."""
        base = (5 + length) / 6 if self.kind == "gnmt" else float(length)
        return float(total / base**self.alpha)

    def bound(self, total: float, length: int, longest: int) -> float:
        """The best score that any continuation can reach: no token adds to `total`, and it may end anywhere from
        `length` to `longest` tokens."""
        return self.score(total, longest if self.alpha > 0 else length)
