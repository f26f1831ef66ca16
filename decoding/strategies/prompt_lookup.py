"""Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; Hugging Face's rules).

    draw the first token of each choice as plain sampling does
    repeat: take the last n tokens, n as large as it goes; if the text has them earlier, propose what came next there
            feed the last token and the g proposals; the target draws at each of the g + 1 positions
            commit the proposals that equal the draw in their place, and the draw after them

The proposal has probability q(x) = 1, so to accept it with probability p(x) is to draw from p and compare. Each draw
has the random number that plain sampling has at its position: the tokens are those of plain sampling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import PromptLookup, Request, Sampling, StrategyParams
from decoding.seam import Draw, Feed, Move, Observation, RowView, Tools, TraceEvent
from decoding.stopping import Stopping
from decoding.strategies.parts.drafting import Ngrams
from decoding.strategies.parts.report import Report
from decoding.strategies.parts.window import Round, Window, begun, matched, moved, without_drafts
from decoding.strategies.sampling import SamplingStrategy


class PromptLookupStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = PromptLookup

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, PromptLookup)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._plain = SamplingStrategy(dataclasses.replace(request, strategy=Sampling(self._params.n)), stopping, tools)
        self._report = Report(request)
        self._windows: list[Window] = []
        self._texts: dict[int, Ngrams] = {}
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        move = self._plain.begin(prompt_ids)
        return dataclasses.replace(move, emit=without_drafts(move.emit))

    def step(self, seen: Observation) -> Move:
        self._num_steps += 1
        if self._num_steps == 1:
            return self._first(self._plain.step(seen))
        rounds = [
            w.commit(v.row, matched(self._report, w.drafts, v.readings))
            for w, v in zip(self._windows, seen.rows, strict=True)
        ]
        for verified in rounds:
            self._texts[verified.emit.choice].extend(verified.emit.token_ids)
        trace = self._trace(rounds, seen.rows) if self._request.trace else ()
        self._windows = [w for w in self._windows if not w.choice.is_over]
        return moved(rounds, [self._feed(window) for window in self._windows], trace=trace)

    def _first(self, move: Move) -> Move:
        self._windows = begun(self._plain.unfinished, move)
        prompt = Ngrams(self._request.prompt_ids, self._params.max_ngram)
        for window in self._windows:
            self._texts[window.choice.index] = text = prompt.fork()
            text.extend((window.last,))
        feeds = tuple(self._feed(window) for window in self._windows)
        return dataclasses.replace(move, feeds=feeds, emit=without_drafts(move.emit))

    def _feed(self, window: Window) -> Feed:
        """The choice's next feed: its last token and what it proposes, never more than it may still say."""
        choice = window.choice
        g = min(self._params.num_tokens, choice.num_left - 1)
        want = self._report.want(Draw(choice.index), scores=self._report.kind)
        want = dataclasses.replace(want, gather_next=self._request.trace, is_tentative=True)
        return window.feed(self._texts[choice.index].propose(g, self._stopping.ending_ids), want, want)

    def _trace(self, rounds: Sequence[Round], rows: Sequence[RowView]) -> tuple[TraceEvent, ...]:
        """p: the target's probability of each draft, raw or processed as the request's log-probs are."""
        scores = [[r.next_score for r in row.readings if r.next_score is not None] for row in rows]
        return tuple(
            verified.event(self._num_steps, p=tuple(math.exp(score) for score in of_row))
            for verified, of_row in zip(rounds, scores, strict=True)
        )
