"""Speculative decoding with a draft model (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, 2302.01318).

    the draft model draws x_1 … x_g one by one, x_i ~ q_i
    the target reads the last token and x_1 … x_g in one feed: p_1 … p_{g+1}
    accept x_i while u_i < min(1, p_i(x_i) / q_i(x_i))
    at the first rejection draw from norm(max(p_i - q_i, 0)), after the last acceptance from p_{g+1}

p and q are what the request's whole pipeline makes of the two models' logits, each at its own history, so the tokens
are distributed as plain sampling's. Greedily a draft stays while it is the target's best token: the tokens are plain
greedy's. Drafting ends early after a token of small q (Hugging Face's confidence threshold) and after one that ends
the text. The distributions never leave the device; at a rejection the token drawn from the two does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import DRAFT, Assisted, Request, Sampling, StrategyParams
from decoding.seam import (
    NOTHING,
    Draw,
    Move,
    Observation,
    Open,
    Purpose,
    Reading,
    RowView,
    Scores,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import Stopping
from decoding.strategies.parts.draft_row import DraftRow
from decoding.strategies.parts.drafting import DraftLength, num_accepted, residual
from decoding.strategies.parts.prompt import open_prompt
from decoding.strategies.parts.report import Report, Token
from decoding.strategies.parts.window import Round, Window, begun, matched, moved, without_drafts
from decoding.strategies.sampling import SamplingStrategy


class AssistedStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Assisted

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Assisted)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._tools = tools
        self._plain = SamplingStrategy(dataclasses.replace(request, strategy=Sampling(self._params.n)), stopping, tools)
        self._report = Report(request)
        self._drafting: list[tuple[Window, DraftRow]] = []
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        move = self._plain.begin(prompt_ids)
        if self._stopping.max_tokens < 2:
            return dataclasses.replace(move, emit=without_drafts(move.emit))
        draft = dataclasses.replace(open_prompt(self._request, NOTHING, NOTHING), parent=Open(DRAFT))
        return dataclasses.replace(move, feeds=(*move.feeds, draft))

    def step(self, seen: Observation) -> Move:
        self._num_steps += 1
        if self._num_steps == 1:
            return self._first(seen)
        rounds: list[Round] = []
        trace: list[TraceEvent] = []
        unfinished = []
        for (window, draft), view in zip(self._drafting, seen.rows, strict=True):
            if not self._is_drafted(window, draft):
                draft.take(view)
            else:
                rounds.append(self._verified(window, draft, view))
                trace += self._trace(rounds[-1], draft, view)
                draft.restart(len(window.drafts) - window.num_rejected, window.last)
            if not window.choice.is_over:
                unfinished.append((window, draft))
        self._drafting = unfinished
        return self._next(rounds, trace)

    def _first(self, seen: Observation) -> Move:
        move = self._plain.step(Observation(seen.rows[:1]))
        length = DraftLength(self._params.num_tokens, self._params.schedule)
        for window in begun(self._plain.unfinished, move):
            self._drafting.append((window, DraftRow(seen.rows[1].row, (window.last,), length)))
        following = self._next((), ())
        return dataclasses.replace(move, feeds=following.feeds, hold=following.hold, emit=without_drafts(move.emit))

    def _is_drafted(self, window: Window, draft: DraftRow) -> bool:
        """Whether the choice's round has its drafts: never more than it may still say."""
        g = min(draft.length.num_tokens, window.choice.num_left - 1)
        return draft.is_over(g, self._stopping.ending_ids, self._params.confidence_threshold)

    def _next(self, rounds: Sequence[Round], trace: Sequence[TraceEvent]) -> Move:
        """Each choice feeds one of its rows and holds the other; a draft row that made no drafts is dropped."""
        feeds, hold = [], []
        for window, draft in self._drafting:
            index = window.choice.index
            if not self._is_drafted(window, draft):
                feeds.append(draft.feed(self._draft_want(index)))
                hold.append(window.row)
            else:
                feeds.append(window.feed(draft.tokens, *self._window_wants(index)))
                hold += [draft.row] if draft.tokens else []
        return moved(rounds, feeds, hold, trace)

    def _draft_want(self, index: int) -> Want:
        draws = (Draw(index, Purpose.SPECULATION_DRAFT),)
        if not self._request.logits.is_greedy:
            return Want(draws, keep=True, is_tentative=True, scores=Scores.PROCESSED)
        needs_q = self._params.confidence_threshold > 0 or self._request.trace
        return Want(draws, top_k=1 if needs_q else 0, is_tentative=True, scores=Scores.PROCESSED)

    def _window_wants(self, index: int) -> tuple[Want, Want]:
        """What to read at the window's last position and at those before it."""
        if self._request.logits.is_greedy:
            want = self._report.want(Draw(index), scores=self._report.kind)
            want = dataclasses.replace(want, gather_next=self._request.trace, is_tentative=True)
            return want, want
        want = dataclasses.replace(self._report.want(Draw(index)), is_tentative=True)
        return want, dataclasses.replace(want, draws=(), gather_next=True, keep=True)

    def _verified(self, window: Window, draft: DraftRow, view: RowView) -> Round:
        if self._request.logits.is_greedy:
            tokens = matched(self._report, window.drafts, view.readings)
        else:
            tokens = self._rejection_sampled(window.choice.index, draft, view.readings)
        return window.commit(view.row, tokens)

    def _rejection_sampled(self, index: int, draft: DraftRow, readings: Sequence[Reading]) -> list[Token]:
        log_p = [r.next_score for r in readings if r.next_score is not None]
        u = self._tools.uniforms(Draw(index, Purpose.SPECULATION_ACCEPT), [r.position for r in readings[:-1]])
        k = num_accepted(log_p, draft.log_q, u)
        accepted, at = draft.tokens[:k], readings[k]
        tokens = [self._report.kept(reading, x) for reading, x in zip(readings, accepted, strict=False)]
        if k == len(draft.tokens):
            return [*tokens, self._report.drawn(at)]
        assert at.kept is not None
        replacement = Draw(index, Purpose.SPECULATION_RESIDUAL)
        following = self._tools.draw(residual(at.kept, draft.q[k]), replacement, at.position)
        return [*tokens, self._report.kept(at, following)]

    def _trace(self, verified: Round, draft: DraftRow, view: RowView) -> list[TraceEvent]:
        """p: the target's probability of each draft; greedily raw or processed as the request's log-probs are."""
        if not self._request.trace:
            return []
        p = tuple(math.exp(r.next_score) for r in view.readings if r.next_score is not None)
        return [verified.event(self._num_steps, p=p, q=tuple(math.exp(log_q) for log_q in draft.log_q))]
