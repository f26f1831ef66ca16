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

from decoding.contract.params import DRAFT, Assisted, Request, Sampling
from decoding.seam import (
    NOTHING,
    Draw,
    Move,
    NothingToDraw,
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
from decoding.strategies.parts.prompt import open_prompt, scores_kind
from decoding.strategies.parts.window import Choice, Round, Token, begun, matched, moved, without_drafts
from decoding.strategies.sampling import SamplingStrategy


class AssistedStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Assisted)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._tools = tools
        self._plain = SamplingStrategy(dataclasses.replace(request, strategy=Sampling(self._params.n)), stopping, tools)
        self._choices: list[tuple[Choice, DraftRow]] = []
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
        for (choice, draft), view in zip(self._choices, seen.rows, strict=True):
            if not self._is_drafted(choice, draft):
                draft.take(view)
            else:
                rounds.append(self._verified(choice, draft, view))
                trace += self._trace(rounds[-1], draft, view)
                draft.restart(len(choice.drafts) - choice.num_rejected, choice.last)
                if rounds[-1].is_last:
                    continue
            unfinished.append((choice, draft))
        self._choices = unfinished
        return self._next(rounds, trace)

    def _first(self, seen: Observation) -> Move:
        move = self._plain.step(Observation(seen.rows[:1]))
        length = DraftLength(self._params.num_tokens, self._params.schedule)
        for choice in begun(move, self._stopping):
            self._choices.append((choice, DraftRow(seen.rows[1].row, (choice.last,), length)))
        following = self._next((), ())
        return dataclasses.replace(move, feeds=following.feeds, hold=following.hold, emit=without_drafts(move.emit))

    def _is_drafted(self, choice: Choice, draft: DraftRow) -> bool:
        """Whether the choice's round has its drafts: never more than it may still say."""
        g = min(draft.length.num_tokens, self._stopping.max_tokens - choice.progress.num_tokens - 1)
        return draft.is_over(g, self._stopping.ending_ids, self._params.confidence_threshold)

    def _next(self, rounds: Sequence[Round], trace: Sequence[TraceEvent]) -> Move:
        """Each choice feeds one of its rows and holds the other; without drafts the draft row has had its day."""
        feeds, hold = [], []
        for choice, draft in self._choices:
            if not self._is_drafted(choice, draft):
                feeds.append(draft.feed(self._draft_want(choice.index)))
                hold.append(choice.row)
            else:
                feeds.append(choice.feed(draft.tokens, *self._window_wants(choice.index)))
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
        draws, has_logprobs = (Draw(index),), self._request.logprobs.output is not None
        num_top, kind = self._request.logprobs.output or 0, scores_kind(self._request)
        if self._request.logits.is_greedy:
            gathers = self._request.trace
            want = Want(draws, has_logprobs, num_top, gather_next=gathers, is_tentative=True, scores=kind)
            return want, want
        top_k, raw_top = (0, num_top) if kind is Scores.RAW else (num_top, 0)
        want = Want(draws, has_logprobs, top_k, raw_top, is_tentative=True, scores=Scores.PROCESSED)
        return want, dataclasses.replace(want, draws=(), gather_next=True, keep=True)

    def _verified(self, choice: Choice, draft: DraftRow, view: RowView) -> Round:
        if self._request.logits.is_greedy:
            tokens = matched(choice.drafts, view.readings)
        else:
            tokens = self._rejection_sampled(choice.index, draft, view.readings)
        return choice.commit(view.row, tokens, self._stopping)

    def _rejection_sampled(self, index: int, draft: DraftRow, readings: Sequence[Reading]) -> list[Token]:
        log_p = [r.next_score for r in readings if r.next_score is not None]
        u = self._tools.uniforms(Draw(index, Purpose.SPECULATION_ACCEPT), [r.position for r in readings[:-1]])
        k = num_accepted(log_p, draft.log_q, u)
        at = readings[k]
        if k == len(draft.tokens) and not at.tokens:
            raise NothingToDraw
        if k == len(draft.tokens):
            following = at.tokens[0]
        else:
            assert at.kept is not None
            replacement = Draw(index, Purpose.SPECULATION_RESIDUAL)
            following = self._tools.draw(residual(at.kept, draft.q[k]), replacement, at.position)
        return [self._token(r, x) for r, x in zip(readings, (*draft.tokens[:k], following), strict=False)]

    def _token(self, reading: Reading, token: int) -> Token:
        """With its log-probs, where the request reports them."""
        if self._request.logprobs.output is None:
            return Token(token)
        if reading.tokens:
            raw, processed = reading.logprobs[0], reading.drawn_scores[0]
        else:
            assert reading.kept is not None
            assert reading.kept_raw is not None
            raw, processed = float(reading.kept_raw[token]), float(reading.kept[token])
        is_raw = scores_kind(self._request) is Scores.RAW
        return Token(token, raw, raw if is_raw else processed, reading.raw_top if is_raw else reading.top)

    def _trace(self, verified: Round, draft: DraftRow, view: RowView) -> list[TraceEvent]:
        """p: the target's probability of each draft; greedily raw or processed as the request's log-probs are."""
        if not self._request.trace:
            return []
        p = tuple(math.exp(r.next_score) for r in view.readings if r.next_score is not None)
        return [verified.event(self._num_steps, p=p, q=tuple(math.exp(log_q) for log_q in draft.log_q))]
