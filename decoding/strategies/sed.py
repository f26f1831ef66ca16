"""Self-evaluation decoding (Luo et al. 2024, arXiv 2405.16552): look ahead where the next token is unclear, and ask.

    decode greedily up to a chaotic point: p2 > delta_ratio * p1 or p1 < min_probability, or entropy > delta_entropy
    speculate: force each of the k likeliest tokens j and continue it greedily, at most max_rollout tokens
    evaluate: feed the question behind it, or all of it to a judge's own context; p_se(j) = P(yes)
    commit the token with the largest alpha * p_se(j) + (1 - alpha) * p_gen(j), and go on;
    where no p_se(j) reaches 0.001, commit the next likeliest token after the k instead

This is what the authors' code does, with one difference: their judge writes a text and P(yes) is that of the last [[Y]]
in it; here it is that of the next token. p1, p2 and p_gen are taken after the logits pipeline, so that no token it
excludes is tried; entropy and the answer to the question are the model's own.

Chaotic points inside a rollout do not count while it is tried. The winner's rollout is what greedy decoding would do
next, so it is kept up to its first chaotic point. Rows draw as the request says; the paper's are greedy (temperature
0). An EOS or stop id that ended a rollout is not fed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from decoding.contract.params import Request, Sed, StrategyParams
from decoding.seam import (
    Draw,
    Feed,
    Finish,
    Json,
    Move,
    Observation,
    Open,
    Reading,
    RowId,
    RowView,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import Progress, Stopping
from decoding.strategies.parts.choice import Choice, text_ids
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.report import Report, Token

LEAST_GOOD = 1e-3
"""Where no candidate's p_se reaches this, none of them is taken."""
BITS = 1 / math.log(2)
"""Per nat."""


@dataclass(slots=True)
class _Rollout:
    """A candidate and what follows it.

    readings: readings[i] was read behind tokens[i].
    row: its own.
    num_fed: so many tokens of it come behind the chaotic point.
    p_se, p_no: the probabilities of yes and no, once it has been asked.
    """

    tokens: list[Token]
    p_gen: float
    progress: Progress
    finish: Finish | None
    readings: list[Reading] = field(default_factory=list)
    row: RowId | None = None
    num_fed: int = 0
    is_asked: bool = False
    p_se: float | None = None
    p_no: float = 0.0


@dataclass(frozen=True, slots=True)
class _Point:
    """A chaotic point.

    row: the row to go on from.
    drop: without so many of its last tokens.
    other: the next likeliest token after the k candidates, if there is one.
    """

    row: RowId
    drop: int
    other: Token | None


class SedStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Sed

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Sed)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._report = Report(request, has_score=True)
        self._choice = Choice(self._report, stopping)
        self._rollouts: list[_Rollout] = []
        self._point: _Point | None = None
        self._text: list[int] = []
        self._num_points = 0
        self._num_forwards = 1
        self._num_steps = 0
        self._trace: list[TraceEvent] = []

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want()),))

    def step(self, seen: Observation) -> Move:
        prompt = None if self._num_steps else prompt_scores(self._request, seen.rows[0].readings)
        self._num_steps += 1
        feeds = self._look_ahead(seen.rows) if self._rollouts else self._go_on(seen.rows[0].row, seen.rows[0].last)
        self._num_forwards += len(feeds)
        figures = (("points", self._num_points), ("forwards", self._num_forwards))
        emits = (self._choice.emit(figures),) if self._choice.has_new_tokens else ()
        trace, self._trace = tuple(self._trace), []
        return Move(feeds, self._held(feeds), emits, prompt, trace=trace)

    def _held(self, feeds: Sequence[Feed]) -> tuple[RowId, ...]:
        """The point and the rollouts that wait for the others or for their judge."""
        if self._point is None:
            return ()
        continued = {feed.parent for feed in feeds}
        return (self._point.row, *(r.row for r in self._rollouts if r.row is not None and r.row not in continued))

    def _want(self) -> Want:
        reads_entropy = self._params.delta_entropy is not None or self._request.trace
        return replace(self._report.want(Draw(), top_k=self._params.k + 1), entropy=reads_entropy)

    # what is settled

    def _go_on(self, row: RowId, reading: Reading, drop: int = 0) -> tuple[Feed, ...]:
        """From the settled text's end: candidates at a chaotic point, else the next token. drop: the unsettled rest."""
        if self._is_chaotic(reading):
            self._num_points += 1
            self._rollouts, other = self._candidates(reading)
            self._point = _Point(row, drop, other)
            return tuple(self._feed(rollout, row, drop) for rollout in self._rollouts)
        token = self._report.drawn(reading)
        self._settle(token)
        return () if self._choice.is_over else (Feed(row, (token.id,), drop=drop, want=self._want()),)

    def _is_chaotic(self, reading: Reading) -> bool:
        if self._num_points == self._params.max_points:
            return False
        best = self._report.candidates(reading, 2)
        if len(best) < 2:
            return False
        limit = self._params.delta_entropy
        if limit is not None:
            return reading.entropy is not None and reading.entropy * BITS > limit
        p1, p2 = (math.exp(score) for _, score in best)
        return p2 > self._params.delta_ratio * p1 or p1 < self._params.min_probability

    def _candidates(self, reading: Reading) -> tuple[list[_Rollout], Token | None]:
        """The k likeliest, and the next."""
        best = self._report.candidates(reading, self._params.k + 1)
        rollouts = []
        for token, score in best[: self._params.k]:
            rollouts.append(_Rollout([token], math.exp(score), *self._stopping.push(self._choice.progress, token.id)))
        entropy = {} if reading.entropy is None else {"entropy": reading.entropy * BITS}
        p1, p2 = (rollout.p_gen for rollout in rollouts[:2])
        self._note("point", token_index=self._choice.progress.num_tokens, probability=p1, ratio=p2 / p1, **entropy)
        return rollouts, best[-1][0] if len(best) > self._params.k else None

    def _settle(self, token: Token) -> None:
        self._choice.push(token)
        self._text.append(token.id)

    # what is tried

    def _look_ahead(self, rows: Sequence[RowView]) -> tuple[Feed, ...]:
        """Every rollout by a token or by its question; when all have been asked, the best is settled."""
        waiting = [rollout for rollout in self._rollouts if rollout.p_se is None]
        feeds = [feed for r, row in zip(waiting, rows, strict=True) if (feed := self._grown(r, row)) is not None]
        return tuple(feeds) if feeds else self._commit()

    def _grown(self, rollout: _Rollout, row: RowView) -> Feed | None:
        if not (rollout.is_asked and self._params.eval_before):
            rollout.row = row.row
        if rollout.is_asked:
            rollout.p_se, rollout.p_no = (math.exp(logprob) for logprob in row.last.gathered)
            return None
        rollout.readings.append(row.last)
        if len(rollout.tokens) <= self._params.max_rollout:
            token = self._report.drawn(row.last)
            rollout.tokens.append(token)
            rollout.progress, rollout.finish = self._stopping.push(rollout.progress, token.id)
        return self._feed(rollout, row.row)

    def _feed(self, rollout: _Rollout, row: RowId, drop: int = 0) -> Feed:
        """The rollout's last token; the question where it is over."""
        unfed = text_ids(rollout.tokens[len(rollout.readings) :], rollout.finish)
        rollout.is_asked = rollout.finish is not None or not unfed
        if not rollout.is_asked:
            rollout.num_fed += len(unfed)
            return Feed(row, unfed, drop=drop, want=self._want())
        question = self._params.eval_ids
        want = Want(gather=(self._params.yes_id, self._params.no_id))
        if self._params.eval_before:
            said = (*self._text, *text_ids(rollout.tokens, rollout.finish))
            return Feed(Open(), self._params.eval_before + said + question, want=want)
        rollout.num_fed += len(unfed + question)
        return Feed(row, unfed + question, drop=drop, want=want, num_injected=len(question))

    def _commit(self) -> tuple[Feed, ...]:
        """Settle the winner, and of its rollout what comes before its first chaotic point."""
        point, winner = self._point, self._winner()
        assert point is not None
        self._rollouts, self._point = [], None
        if winner is None:
            assert point.other is not None
            self._settle(point.other)
            feed = Feed(point.row, (point.other.id,), drop=point.drop, want=self._want())
            return () if self._choice.is_over else (feed,)
        self._settle(winner.tokens[0])
        for at, reading in enumerate(winner.readings, start=1):
            if at == len(winner.tokens) or self._is_chaotic(reading):
                assert winner.row is not None
                return self._go_on(winner.row, reading, drop=winner.num_fed - at)
            self._settle(winner.tokens[at])
        return ()

    def _winner(self) -> _Rollout | None:
        """None where no p_se is good enough and there is another token."""
        assert self._point is not None
        scores = [self._params.alpha * (r.p_se or 0.0) + (1 - self._params.alpha) * r.p_gen for r in self._rollouts]
        is_none_good = max(r.p_se or 0.0 for r in self._rollouts) < LEAST_GOOD and self._point.other is not None
        winner = None if is_none_good else self._rollouts[scores.index(max(scores))]
        for j, (r, score) in enumerate(zip(self._rollouts, scores, strict=True)):
            seen = {"p_gen": r.p_gen, "p_se": r.p_se, "p_no": r.p_no, "score": score, "chosen": r is winner}
            self._note("candidate", candidate=j, tokens=[t.id for t in r.tokens], **seen)
        return winner

    def _note(self, kind: str, **values: Json) -> None:
        if self._request.trace:
            self._trace.append(TraceEvent(self._num_steps, kind, values))
