"""Self-evaluation decoding (Luo et al. 2024, arXiv 2405.16552): look ahead where the next token is unclear, and ask.

    decode greedily up to a chaotic point: p2 / p1 > delta_ratio, or entropy > delta_entropy
    speculate: force each of the k likeliest tokens j and continue it greedily, at most max_rollout tokens
    evaluate: feed the question behind it, p_se(j) = P(yes) / (P(yes) + P(no))
    commit the token with the largest alpha * p_se(j) + (1 - alpha) * p_gen(j), and go on

p1, p2 and p_gen (renormalised over the k) are those after the logits pipeline, so that no token it excludes is tried;
entropy and the answer to the question are the model's own. The winner's rollout is what greedy decoding would do next,
so it is kept up to its own next chaotic point; inside a rollout such points are passed over. Rows draw as the request
says: greedily at temperature 0, which is the paper's. An EOS or stop id that ended a rollout is not fed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from decoding.params import Request, Sed
from decoding.seam import (
    Draw,
    Emit,
    Feed,
    Finish,
    Json,
    Move,
    Observation,
    Reading,
    RowId,
    RowView,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.prompt import open_prompt, prompt_scores
from decoding.strategies.tokens import Token, candidates, drawn, emit, text_ids, token_want


@dataclass(slots=True)
class _Rollout:
    """A candidate and what follows it: readings[i] was read after tokens[i]. row: that of its last feed."""

    tokens: list[Token]
    p_gen: float
    progress: Progress
    finish: Finish | None
    readings: list[Reading] = field(default_factory=list)
    row: RowId | None = None
    is_asked: bool = False
    p_se: float | None = None


class SedStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Sed)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._progress = START
        self._finish: Finish | None = None
        self._score = 0.0
        self._rollouts: list[_Rollout] = []
        self._num_points = 0
        self._num_forwards = 1
        self._num_steps = 0
        self._settled: list[Token] = []
        self._trace: list[TraceEvent] = []

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want()),))

    def step(self, seen: Observation) -> Move:
        prompt = None if self._num_steps else prompt_scores(self._request, seen.rows[0].readings)
        self._num_steps += 1
        feeds = self._look_ahead(seen.rows) if self._rollouts else self._go_on(seen.rows[0].row, seen.rows[0].last)
        self._num_forwards += len(feeds)
        hold = tuple(r.row for r in self._rollouts if r.row is not None and r.p_se is not None)
        emits = (self._emit(),) if self._settled else ()
        trace, self._trace, self._settled = tuple(self._trace), [], []
        return Move(feeds, hold, emits, prompt, trace=trace)

    def _want(self) -> Want:
        reads_entropy = self._params.delta_entropy is not None or self._request.trace
        return token_want(self._request, Draw(), top_k=self._params.k, entropy=reads_entropy)

    # what is settled

    def _go_on(self, row: RowId, reading: Reading, drop: int = 0) -> tuple[Feed, ...]:
        """From the settled text's end: candidates at a chaotic point, else the next token. drop: the unsettled rest."""
        if self._is_chaotic(reading):
            self._num_points += 1
            self._rollouts = self._candidates(reading)
            return tuple(self._feed(rollout, row, drop) for rollout in self._rollouts)
        token = drawn(self._request, reading)
        self._settle(token)
        return () if self._finish else (Feed(row, (token.id,), drop=drop, want=self._want()),)

    def _is_chaotic(self, reading: Reading) -> bool:
        if self._num_points == self._params.max_points:
            return False
        best = candidates(self._request, reading, 2)
        is_close = len(best) == 2 and math.exp(best[1][1] - best[0][1]) > self._params.delta_ratio
        limit = self._params.delta_entropy
        is_unsure = limit is not None and reading.entropy is not None and reading.entropy > limit
        return len(best) == 2 and (is_close or is_unsure)

    def _candidates(self, reading: Reading) -> list[_Rollout]:
        best = candidates(self._request, reading, self._params.k)
        p = [math.exp(score) for _, score in best]
        pushed = [self._stopping.push(self._progress, token.id) for token, _ in best]
        entropy = {} if reading.entropy is None else {"entropy": reading.entropy}
        self._note("point", token_index=self._progress.num_tokens, ratio=p[1] / p[0], **entropy)
        return [_Rollout([t], pj / sum(p), *after) for (t, _), pj, after in zip(best, p, pushed, strict=True)]

    def _settle(self, token: Token) -> None:
        self._progress, self._finish = self._stopping.push(self._progress, token.id)
        self._score += token.raw_logprob
        self._settled.append(token)

    def _emit(self) -> Emit:
        finish = self._finish
        if finish is not None:
            figures = (("points", self._num_points), ("forwards", self._num_forwards))
            finish = Finish(finish.reason, finish.stop_reason, self._score, figures)
        return emit(self._request, 0, self._settled, finish)

    # what is tried

    def _look_ahead(self, rows: Sequence[RowView]) -> tuple[Feed, ...]:
        """Every rollout by a token or by its question; when all have been asked, the best is settled."""
        waiting = [rollout for rollout in self._rollouts if rollout.p_se is None]
        feeds = [feed for r, row in zip(waiting, rows, strict=True) if (feed := self._grown(r, row)) is not None]
        return tuple(feeds) if feeds else self._commit()

    def _grown(self, rollout: _Rollout, row: RowView) -> Feed | None:
        rollout.row = row.row
        if rollout.is_asked:
            yes, no = row.last.gathered
            rollout.p_se = 1 / (1 + math.exp(min(no - yes, 700.0)))  # exp overflows beyond
            return None
        rollout.readings.append(row.last)
        if len(rollout.tokens) <= self._params.max_rollout:
            token = drawn(self._request, row.last)
            rollout.tokens.append(token)
            rollout.progress, rollout.finish = self._stopping.push(rollout.progress, token.id)
        return self._feed(rollout, row.row)

    def _feed(self, rollout: _Rollout, row: RowId, drop: int = 0) -> Feed:
        """The rollout's last token; the question where it is over."""
        unfed = text_ids(rollout.tokens[len(rollout.readings) :], rollout.finish)
        rollout.is_asked = rollout.finish is not None or not unfed
        if not rollout.is_asked:
            return Feed(row, unfed, drop=drop, want=self._want())
        question = self._params.eval_ids
        want = Want(gather=(self._params.yes_id, self._params.no_id))
        return Feed(row, unfed + question, drop=drop, want=want, num_injected=len(question))

    def _commit(self) -> tuple[Feed, ...]:
        """Settle the winner, and of its rollout what comes before its first chaotic point."""
        scores = [self._params.alpha * (r.p_se or 0.0) + (1 - self._params.alpha) * r.p_gen for r in self._rollouts]
        winner = self._rollouts[scores.index(max(scores))]
        for j, (r, score) in enumerate(zip(self._rollouts, scores, strict=True)):
            ids, is_chosen = [t.id for t in r.tokens], r is winner
            self._note("candidate", candidate=j, tokens=ids, p_gen=r.p_gen, p_se=r.p_se, score=score, chosen=is_chosen)
        self._rollouts = []
        assert winner.row is not None
        num_fed = len(text_ids(winner.tokens, winner.finish)) + len(self._params.eval_ids)
        self._settle(winner.tokens[0])
        for at, reading in enumerate(winner.readings, start=1):
            if at == len(winner.tokens) or self._is_chaotic(reading):
                return self._go_on(winner.row, reading, drop=num_fed - at)
            self._settle(winner.tokens[at])
        return ()

    def _note(self, kind: str, **values: Json) -> None:
        if self._request.trace:
            self._trace.append(TraceEvent(self._num_steps, kind, values))
