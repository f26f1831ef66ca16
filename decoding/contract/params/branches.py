"""Strategies that try whole continuations before they commit: CoT-decoding and self-evaluation decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.invalid import check, check_finite

Span = Literal["answer", "all"]


@dataclass(frozen=True, slots=True)
class CotDecoding:
    """CoT-decoding (Wang & Zhou 2024, arXiv 2402.10200): branch into the k likeliest tokens, decode each greedily.

    branch_at: output position of the branching. aggregate: sum the confidence of branches with equal answers, else the
    surest single branch wins. answer_regex: finds the answer, its last match counts (None: the last number).
    suffix_ids: fed after a finished branch; the answer is then looked for in its greedy continuation (None: the last
    number, else the whole line), and its tokens are those that say it last in the branch. span "all": confidence over
    all tokens. max_answer: tokens of that continuation.
    """

    NAME: ClassVar[str] = "cot_decoding"

    k: int = 10
    branch_at: int = 0
    aggregate: bool = True
    answer_regex: str | None = None
    suffix_ids: tuple[int, ...] = ()
    span: Span = "answer"
    max_answer: int = 16
    n: int = 1

    def __post_init__(self) -> None:
        check(self.k >= 1, "cot_decoding.k", "must be at least 1")
        check(self.branch_at >= 0, "cot_decoding.branch_at", "must not be negative")
        check(self.max_answer >= 1, "cot_decoding.max_answer", "must be at least 1")
        check(1 <= self.n <= self.k, "n", "must lie between 1 and cot_decoding.k")

    @property
    def max_rows(self) -> int:
        return self.k


@dataclass(frozen=True, slots=True)
class Sed:
    """Self-evaluation decoding (Luo et al. 2024, arXiv 2405.16552): where the next token is unclear, look and ask.

    A point is chaotic where p2 > delta_ratio * p1 or p1 < min_probability; with a delta_entropy, where the entropy
    (bits) lies above it instead. Each of the k likeliest tokens is continued greedily for at most max_rollout tokens
    and judged: eval_ids are fed behind it, and the probability of yes_id is its evaluation. Where eval_before is given,
    the judge reads a context of its own: eval_before, the output, eval_ids. max_points: chaotic points per request.
    """

    NAME: ClassVar[str] = "sed"

    eval_ids: tuple[int, ...]
    yes_id: int
    no_id: int
    k: int = 2
    delta_ratio: float = 0.5
    min_probability: float = 0.2
    delta_entropy: float | None = None
    alpha: float = 0.8
    max_rollout: int = 512
    max_points: int = 5
    eval_before: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(self.k >= 2, "sed.k", "must be at least 2")
        check_finite(self.delta_ratio, "sed.delta_ratio", low=0, high=1)
        check_finite(self.min_probability, "sed.min_probability", low=0, high=1)
        check(self.delta_entropy is None or self.delta_entropy >= 0, "sed.delta_entropy", "must not be negative")
        check_finite(self.alpha, "sed.alpha", low=0, high=1)
        check(self.max_rollout >= 1, "sed.max_rollout", "must be at least 1")
        check(self.max_points >= 0, "sed.max_points", "must not be negative")
        check(bool(self.eval_ids), "sed", "needs an evaluation prompt")

    @property
    def n(self) -> int:
        return 1

    @property
    def max_rows(self) -> int:
        """The point, its continuations, and what their judge reads."""
        return 2 * self.k + 1
