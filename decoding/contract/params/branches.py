"""Strategies that try whole continuations before they commit: CoT-decoding and self-evaluation decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import MAX_INT, PROBABILITY, FromModel, FromText, Named, Says, TokenId, Within
from decoding.contract.params.invalid import check

Span = Literal["answer", "all"]


@dataclass(frozen=True, slots=True)
class CotDecoding(StrategyParams):
    """CoT-decoding: branch into the k likeliest tokens, decode each greedily.

    suffix_ids: fed after a finished branch; the answer is then looked for in its greedy continuation (None: the last
    number, else the whole line), and its tokens are those that say it last in the branch.
    """

    NAME = "cot_decoding"
    WITHIN = "cot_decoding"

    # fmt: off
    k: Annotated[int, Within(1, MAX_INT), Says("Branches: the k likeliest tokens.")] = 10
    branch_at: Annotated[int, Within(0, MAX_INT), Says("Output position of the branching.")] = 0
    aggregate: Annotated[
        bool, Says("Sum the confidence of branches with the same answer, else the surest wins."),
    ] = True
    answer_regex: Annotated[
        str | None, Says("RE2 pattern of the answer, its last match counts; default: the last number."),
    ] = None
    suffix_ids: Annotated[tuple[TokenId, ...], Named("cot_decoding.suffix"), FromText()] = ()
    span: Annotated[Span, Says("The tokens whose confidence counts.")] = "answer"
    max_answer: Annotated[int, Within(1, 1024), Says("Most tokens of the answer behind a suffix.")] = 16
    n: Choices = 1
    # fmt: on

    def _check(self) -> None:
        check(self.n <= self.k, "n", "must lie between 1 and cot_decoding.k")

    @property
    def max_rows(self) -> int:
        return self.k

    @property
    def num_behind(self) -> int:
        return len(self.suffix_ids) + self.max_answer if self.suffix_ids else 0


@dataclass(frozen=True, slots=True)
class Sed(StrategyParams):
    """Self-evaluation decoding: where the next token is unclear, look and ask.

    Each of the k likeliest tokens is continued greedily for at most max_rollout tokens and judged: eval_ids are fed
    behind it, and the probability of yes_id is its evaluation. Where eval_before is given, the judge reads a context
    of its own: eval_before, the output, eval_ids.
    """

    NAME = "sed"
    WITHIN = "sed"

    # fmt: off
    eval_ids: Annotated[tuple[TokenId, ...], Named("sed.question"), FromModel((0,))]
    yes_id: Annotated[TokenId, Named("sed.yes"), FromModel(0)]
    no_id: Annotated[TokenId, Named("sed.no"), FromModel(0)]
    k: Annotated[int, Within(2, MAX_INT), Says("Candidates at a chaotic point.")] = 2
    delta_ratio: Annotated[float, PROBABILITY, Says("Chaotic where p2 / p1 lies above.")] = 0.5
    min_probability: Annotated[float, PROBABILITY, Says("Chaotic where p1 lies below, too.")] = 0.2
    delta_entropy: Annotated[
        float | None, Within(0, 1000),
        Says("Chaotic where the entropy (bits) lies above, instead of by the two above; default: not looked at."),
    ] = None
    alpha: Annotated[
        float, PROBABILITY, Says("Weight of the evaluation against the token's own probability."),
    ] = 0.8
    max_rollout: Annotated[int, Within(1, 4096), Says("Most tokens of a trial continuation.")] = 512
    max_points: Annotated[int, Within(0, 1024), Says("Most chaotic points of a request.")] = 5
    eval_before: Annotated[tuple[TokenId, ...], Named("sed.question"), FromModel(())] = ()
    # fmt: on

    def _check(self) -> None:
        check(bool(self.eval_ids), "sed", "needs an evaluation prompt")

    @property
    def max_rows(self) -> int:
        """The point, its continuations, and what their judge reads."""
        return 2 * self.k + 1

    @property
    def judge_context(self) -> tuple[int, ...]:
        return self.eval_before

    @property
    def num_behind(self) -> int:
        return len(self.eval_ids)

    @property
    def feeds_last(self) -> bool:
        return True
