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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from decoding.drafting import DraftLength, num_accepted, residual
from decoding.params import DRAFT, Assisted, Request, Sampling
from decoding.seam import (
    NOTHING,
    Draw,
    Feed,
    Move,
    Observation,
    Open,
    Purpose,
    Reading,
    RowId,
    RowView,
    Scores,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import Stopping
from decoding.strategies.prompt import open_prompt, scores_kind
from decoding.strategies.sampling import SamplingStrategy
from decoding.strategies.window import Choice, Round, Token, begun, matched, moved, without_drafts


@dataclass(slots=True)
class _Draft:
    """A choice's row in the draft model, and this round's drafts.

    lacking: committed and not fed to it yet. num_stale: its last positions that are not committed. log_q: of each
    draft; q: the distributions they were drawn from, in log [vocab], when sampling.
    """

    row: RowId
    lacking: tuple[int, ...]
    length: DraftLength
    num_stale: int = 0
    tokens: list[int] = field(default_factory=list)
    log_q: list[float] = field(default_factory=list)
    q: list[torch.Tensor] = field(default_factory=list)

    def feed(self, want: Want) -> Feed:
        if self.tokens:
            return Feed(self.row, (self.tokens[-1],), want=want)
        return Feed(self.row, self.lacking, drop=self.num_stale, want=want)

    def take(self, view: RowView) -> None:
        """x_i, drawn at the row's last position."""
        self.row = view.row
        self.tokens.append(view.last.tokens[0])
        self.log_q += view.last.drawn_scores or [score for _, score in view.last.top] or [0.0]
        self.q += [view.last.kept] if view.last.kept is not None else []

    def is_over(self, most: int, ending_ids: Collection[int], confidence_threshold: float) -> bool:
        """Whether enough is drafted."""
        if not self.tokens or len(self.tokens) >= most:
            return len(self.tokens) >= most
        return self.tokens[-1] in ending_ids or math.exp(self.log_q[-1]) < confidence_threshold

    def restart(self, num_kept: int, last: int) -> None:
        """After a verification that kept so many drafts and put `last` behind them. The last draft was never fed."""
        num_fed = max(len(self.tokens) - 1, 0)
        self.num_stale = max(num_fed - num_kept, 0)
        self.lacking = (*self.tokens[num_fed:num_kept], last)
        self.length = self.length.after(len(self.tokens), num_kept)
        self.tokens, self.log_q, self.q = [], [], []


class AssistedStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Assisted)
        self._params = request.strategy
        self._request = request
        self._stopping = stopping
        self._tools = tools
        self._plain = SamplingStrategy(dataclasses.replace(request, strategy=Sampling(self._params.n)), stopping, tools)
        self._choices: list[tuple[Choice, _Draft]] = []
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
            self._choices.append((choice, _Draft(seen.rows[1].row, (choice.last,), length)))
        following = self._next((), ())
        return dataclasses.replace(move, feeds=following.feeds, hold=following.hold, emit=without_drafts(move.emit))

    def _is_drafted(self, choice: Choice, draft: _Draft) -> bool:
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
            return Want(draws, keep=True, scores=Scores.PROCESSED)
        needs_q = self._params.confidence_threshold > 0 or self._request.trace
        return Want(draws, top_k=1 if needs_q else 0, scores=Scores.PROCESSED)

    def _window_wants(self, index: int) -> tuple[Want, Want]:
        """What to read at the window's last position and at those before it."""
        num_top = self._request.logprobs.output
        want = Want((Draw(index),), logprobs=num_top is not None, scores=scores_kind(self._request))
        if self._request.logits.is_greedy:
            want = dataclasses.replace(want, top_k=num_top or 0, gather_next=self._request.trace)
            return want, want
        is_raw = want.scores is Scores.RAW
        want = dataclasses.replace(want, scores=Scores.PROCESSED, raw_top=(num_top or 0) * is_raw)
        want = dataclasses.replace(want, top_k=(num_top or 0) * (not is_raw))
        return want, dataclasses.replace(want, draws=(), gather_next=True, keep=True)

    def _verified(self, choice: Choice, draft: _Draft, view: RowView) -> Round:
        if self._request.logits.is_greedy:
            tokens = matched(choice.drafts, view.readings)
        else:
            tokens = self._rejection_sampled(choice.index, draft, view.readings)
        return choice.commit(view.row, tokens, self._stopping)

    def _rejection_sampled(self, index: int, draft: _Draft, readings: Sequence[Reading]) -> list[Token]:
        log_p = [r.next_score for r in readings if r.next_score is not None]
        u = self._tools.uniforms(Draw(index, Purpose.SPECULATION_ACCEPT), [r.position for r in readings[:-1]])
        k = num_accepted(log_p, draft.log_q, u)
        at = readings[k]
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

    def _trace(self, verified: Round, draft: _Draft, view: RowView) -> list[TraceEvent]:
        """p: the target's probability of each draft; greedily raw or processed as the request's log-probs are."""
        if not self._request.trace:
            return []
        p = tuple(math.exp(r.next_score) for r in view.readings if r.next_score is not None)
        return [verified.event(self._num_steps, p=p, q=tuple(math.exp(log_q) for log_q in draft.log_q))]
