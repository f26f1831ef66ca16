"""Greedy decoding and multinomial sampling: n choices from one prompt.

    feed the prompt; draw n first tokens from its last position
    repeat: each unfinished choice feeds its token x_t and draws x_{t+1} ~ softmax(pipeline(z))
    a choice leaves when x_t ends it

Each choice has random numbers of its own, so the n choices are n independent requests that share their prompt's pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from decoding.contract.params import Request, Sampling, StrategyParams
from decoding.seam import Draw, Feed, Move, Observation, RowView, Tools, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import Choice
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.report import Report

NUM_TRACED = 5
"""Candidates that a traced step shows."""


class SamplingStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Sampling

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Sampling)
        self._request = request
        self._report = Report(request)
        self._wants = [self._want(Draw(i)) for i in range(request.strategy.n)]
        self.unfinished = [Choice(self._report, stopping, i) for i in range(request.strategy.n)]
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        want = self._want(*(Draw(c.index) for c in self.unfinished))
        return Move(feeds=(open_prompt(self._request, want),))

    def step(self, seen: Observation) -> Move:
        self._num_steps += 1
        if self._num_steps > 1:
            return self._advance(seen.rows, [0] * len(seen.rows))
        prompt = prompt_scores(self._request, seen.rows[0].readings)
        return replace(self._advance(seen.rows * len(self.unfinished), range(len(self.unfinished))), prompt=prompt)

    def _want(self, *draws: Draw) -> Want:
        if not self._request.trace:
            return self._report.want(*draws, scores=self._report.kind)
        return replace(self._report.want(*draws, raw_top=NUM_TRACED), logprobs=True, entropy=True)

    def _advance(self, rows: Sequence[RowView], draws: Sequence[int]) -> Move:
        """Commit of each choice's row the draw of that number; feed the choices that go on."""
        feeds, emits, unfinished = [], [], []
        for choice, view, draw in zip(self.unfinished, rows, draws, strict=True):
            token = self._report.drawn(view.last, draw)
            choice.push(token)
            emits.append(choice.emit())
            if not choice.is_over:
                feeds.append(Feed(view.row, (token.id,), want=self._wants[choice.index]))
                unfinished.append(choice)
        trace = self._events(rows, draws) if self._request.trace else ()
        self.unfinished = unfinished
        return Move(tuple(feeds), emit=tuple(emits), trace=trace)

    def _events(self, rows: Sequence[RowView], draws: Sequence[int]) -> tuple[TraceEvent, ...]:
        """What each choice drew, and from what.

        probability: of the drawn token in the distribution drawn from (at temperature 0: before its argmax).
        All others are the model's own.
        """
        drawn = [(c, view.last, i) for c, view, i in zip(self.unfinished, rows, draws, strict=True)]
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
            for choice, reading, i in drawn
        )
