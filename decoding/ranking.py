"""Order among finished candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.params import RankBy


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
