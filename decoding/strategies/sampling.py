"""Greedy decoding and multinomial sampling: n choices from one prompt.

    feed the prompt; draw n first tokens from its last position
    repeat: each unfinished choice feeds its token x_t and draws x_{t+1} ~ softmax(pipeline(z))
    a choice leaves when x_t ends it

Each choice has random numbers of its own, so the n choices are n independent requests that share their prompt's pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from decoding.contract.params import Request, Sampling
from decoding.seam import Draw, Emit, Feed, Finish, Move, Observation, Reading, RowId, Scores, Tools, TraceEvent, Want
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.parts.prompt import open_prompt, prompt_scores, scores_kind

NUM_TRACED = 5
"""Candidates that a traced step shows."""


@dataclass(slots=True)
class _Choice:
    """One choice under way: how far it is and its cumulative raw log-prob."""

    index: int
    want: Want
    progress: Progress = START
    score: float = 0.0


class SamplingStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Sampling)
        self._request = request
        self._stopping = stopping
        self._unfinished = [_Choice(i, self._want((Draw(i),))) for i in range(request.strategy.n)]
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        want = self._want(tuple(Draw(c.index) for c in self._unfinished))
        return Move(feeds=(open_prompt(self._request, want),))

    def step(self, seen: Observation) -> Move:
        self._num_steps += 1
        if self._num_steps > 1:
            return self._advance([(c, r.row, r.last, 0) for c, r in zip(self._unfinished, seen.rows, strict=True)])
        prompt = seen.rows[0]
        move = self._advance([(c, prompt.row, prompt.last, i) for i, c in enumerate(self._unfinished)])
        return replace(move, prompt=prompt_scores(self._request, prompt.readings))

    def _want(self, draws: tuple[Draw, ...]) -> Want:
        num_top = self._request.logprobs.output
        want = Want(draws, logprobs=num_top is not None, top_k=num_top or 0, scores=scores_kind(self._request))
        if not self._request.trace:
            return want
        raw_top = max(num_top or 0, NUM_TRACED)
        return replace(want, logprobs=True, raw_top=raw_top, entropy=True, scores=Scores.PROCESSED)

    def _advance(self, drawn: Sequence[tuple[_Choice, RowId, Reading, int]]) -> Move:
        """Commit draw number `i` of each reading; feed the choices that go on."""
        feeds, emits, unfinished = [], [], []
        for choice, row, reading, i in drawn:
            token = reading.tokens[i]
            choice.progress, finish = self._stopping.push(choice.progress, token)
            emits.append(self._emit(choice, reading, i, finish))
            if finish is None:
                feeds.append(Feed(row, (token,), want=choice.want))
                unfinished.append(choice)
        self._unfinished = unfinished
        return Move(tuple(feeds), emit=tuple(emits), trace=self._events(drawn) if self._request.trace else ())

    def _emit(self, choice: _Choice, reading: Reading, i: int, finish: Finish | None) -> Emit:
        token = (reading.tokens[i],)
        logprobs = self._request.logprobs
        if logprobs.output is None:
            return Emit(choice.index, token, finish=finish)
        choice.score += reading.logprobs[i]
        if finish is not None:
            finish = Finish(finish.reason, finish.stop_reason, choice.score)
        raw = (reading.logprobs[i],)
        own = raw if logprobs.mode == "raw" else (reading.drawn_scores[i],)
        top = reading.raw_top if logprobs.mode == "raw" and self._request.trace else reading.top
        return Emit(choice.index, token, own, (top[: logprobs.output],), raw, finish)

    def _events(self, drawn: Sequence[tuple[_Choice, RowId, Reading, int]]) -> tuple[TraceEvent, ...]:
        """What each choice drew, and from what: probabilities are the model's own but for `probability`, that of the
        drawn token in the distribution drawn from (at temperature 0: before its argmax)."""
        return tuple(
            TraceEvent(
                self._num_steps,
                "draw",
                {
                    "choice": choice.index,
                    "token": reading.tokens[i],
                    "probability": math.exp(reading.drawn_scores[i]),
                    "raw_probability": math.exp(reading.logprobs[i]),
                    "entropy": reading.entropy,
                    "varentropy": reading.varentropy,
                    "candidates": [
                        {"token": token, "probability": math.exp(logprob)}
                        for token, logprob in reading.raw_top[:NUM_TRACED]
                    ],
                },
            )
            for choice, _, reading, i in drawn
        )
