"""Order among finished candidates, and what a length costs them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from decoding.contract.params import RankBy
from decoding.contract.params.beams import LengthPenaltyType


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


@dataclass(frozen=True, slots=True)
class Vote:
    """A finished sequence's index, the answer it gives (None: one that nobody shares) and how sure it is of it."""

    index: int
    answer: str | None
    confidence: float

    @property
    def party(self) -> str | int:
        """The same for all votes with equal answers."""
        return self.index if self.answer is None else self.answer


def surest(votes: Sequence[Vote]) -> list[tuple[Vote, float]]:
    """Surest first, each with its confidence; the lower index among equals."""
    return [(v, v.confidence) for v in sorted(votes, key=lambda v: (-v.confidence, v.index))]


def by_agreement(votes: Sequence[Vote]) -> list[tuple[Vote, float]]:
    """The surest vote of each answer, best sum of confidences first, then each answer's second and so on; with the sum.

    So the first n of them give n different answers where there are as many.
    """
    sums: defaultdict[str | int, float] = defaultdict(float)
    places: Counter[str | int] = Counter()
    placed = []
    for vote, confidence in surest(votes):
        placed.append((places[vote.party], vote))
        places[vote.party] += 1
        sums[vote.party] += confidence
    placed.sort(key=lambda pair: (pair[0], -sums[pair[1].party]))
    return [(vote, sums[vote.party]) for _, vote in placed]
