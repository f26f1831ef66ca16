"""Contrastive search (Su et al. 2022, arXiv 2202.06417).

    V = the k likeliest tokens of p(. | x_<t); run each as x_t, which gives its hidden state h_v
    x_t = argmax_{v in V}  (1 - alpha) * p(v | x_<t) - alpha * max_{j < t} cos(h_v, h_{x_j})

p is what the pipeline leaves. h is the last hidden state, prompt included. The row of x_t goes on, the others are
dropped; the next step's p was read with it, so a token costs one tick of k rows. Excluded tokens are no candidates,
however few are left (Hugging Face fills up to k with them).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from decoding.contract.params import Contrastive, Request
from decoding.seam import Feed, Move, NothingToDraw, Observation, Reading, RowView, Scores, Tools, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import Choice, TokenScores
from decoding.strategies.parts.hidden_bank import HiddenBank
from decoding.strategies.parts.prompt import inner_want, open_prompt, prompt_scores


class ContrastiveStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Contrastive)
        self._request = request
        self._alpha = request.strategy.penalty_alpha
        self._k = request.strategy.k if self._alpha else 1  # the likeliest wins then
        self._choice = Choice(stopping)
        self._bank = HiddenBank()
        self._parent: Reading | None = None  # where the candidates under way come from
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        inner = dataclasses.replace(inner_want(self._request), hidden=True)
        return Move((open_prompt(self._request, self._want(), inner),))

    def step(self, seen: Observation) -> Move:
        if self._parent is None:
            return self._after_prompt(seen.rows[0])
        h = _units([view.last for view in seen.rows])  # [k, hidden]
        candidates = self._candidates(self._parent)
        p = torch.tensor([logp for _, logp in candidates]).exp()
        penalty = self._bank.nearest(h)
        score = (1 - self._alpha) * p - self._alpha * penalty
        best = int(score.argmax())
        self._bank.extend(h[best : best + 1])
        emit = self._choice.emit(candidates[best][0], self._token_scores(self._parent, best))
        trace = (self._event(p, penalty, score, best),) if self._request.trace else ()
        self._num_steps += 1
        if self._choice.is_over:
            return Move(emit=(emit,), trace=trace)
        return dataclasses.replace(self._branch(seen.rows[best]), emit=(emit,), trace=trace)

    def _after_prompt(self, prompt: RowView) -> Move:
        self._bank.extend(_units(prompt.readings))
        scores = prompt_scores(self._request, prompt.readings)
        return dataclasses.replace(self._branch(prompt), prompt=scores)

    def _branch(self, view: RowView) -> Move:
        """Feed each candidate for the next token to a fork of its own."""
        self._parent = view.last
        candidates = self._candidates(view.last)
        if not candidates:
            raise NothingToDraw
        want = Want(hidden=True) if self._choice.is_last_token_due else self._want()
        return Move(tuple(Feed(view.row, (token,), want=want) for token, _ in candidates))

    def _want(self) -> Want:
        """What a position has to tell for the candidates that follow it."""
        num_top, is_raw = self._request.logprobs.output, self._request.logprobs.mode == "raw"
        reported = num_top or 0
        return Want(
            logprobs=num_top is not None,
            top_k=self._k if is_raw else max(self._k, reported),
            raw_top=reported if is_raw else 0,
            hidden=True,
            scores=Scores.PROCESSED,
        )

    def _candidates(self, reading: Reading) -> list[tuple[int, float]]:
        """(id, log p), likeliest first."""
        return [(token, logp) for token, logp in reading.top[: self._k] if math.isfinite(logp)]

    def _token_scores(self, reading: Reading, best: int) -> TokenScores | None:
        num_top = self._request.logprobs.output
        if num_top is None:
            return None
        raw = reading.top_logprobs[best]
        if self._request.logprobs.mode == "raw":
            return TokenScores(raw, reading.raw_top, raw)
        return TokenScores(reading.top[best][1], reading.top[:num_top], raw)

    def _event(self, p: torch.Tensor, penalty: torch.Tensor, score: torch.Tensor, best: int) -> TraceEvent:
        assert self._parent is not None
        ids = [token for token, _ in self._candidates(self._parent)]
        values = {"tokens": ids, "probabilities": p.tolist(), "penalties": penalty.tolist(), "scores": score.tolist()}
        return TraceEvent(self._num_steps, "candidates", {**values, "token": ids[best]})


def _units(readings: Sequence[Reading]) -> torch.Tensor:
    """Their hidden states at length 1: [readings, hidden]."""
    return normalize(torch.stack([r.hidden for r in readings if r.hidden is not None]), dim=-1)
