"""Contrastive search (Su et al. 2022, arXiv 2202.06417).

    V = the k likeliest tokens of p(. | x_<t); run each as x_t, which gives its hidden state h_v
    x_t = argmax_{v in V}  (1 - alpha) * p(v | x_<t) - alpha * max_{j < t} cos(h_v, h_{x_j})

p is what the pipeline leaves. h is the last hidden state, prompt included. The row of x_t goes on, the others are
dropped; the next step's p was read with it, so a token costs one tick of k rows. Excluded tokens are no candidates,
however few are left (Hugging Face fills up to k with them).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from decoding.contract.params import Contrastive, Request, StrategyParams
from decoding.seam import Feed, Move, NothingToDraw, Observation, Reading, RowView, Tools, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import Choice
from decoding.strategies.parts.hidden_bank import HiddenBank
from decoding.strategies.parts.prompt import inner_want, open_prompt, prompt_scores
from decoding.strategies.parts.report import Report, Token


class ContrastiveStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Contrastive

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Contrastive)
        self._request = request
        self._alpha = request.strategy.penalty_alpha
        self._k = request.strategy.k if self._alpha else 1  # the likeliest wins then
        self._report = Report(request)
        self._choice = Choice(self._report, stopping)
        self._bank = HiddenBank()
        self._candidates: list[tuple[Token, float]] = []  # each with its log p
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        inner = dataclasses.replace(inner_want(self._request), hidden=True)
        return Move((open_prompt(self._request, self._want(), inner),))

    def step(self, seen: Observation) -> Move:
        if not self._candidates:
            return self._after_prompt(seen.rows[0])
        h = _units([view.last for view in seen.rows])  # [k, hidden]
        p = torch.tensor([logp for _, logp in self._candidates]).exp()
        penalty = self._bank.nearest(h)
        score = (1 - self._alpha) * p - self._alpha * penalty
        best = int(score.argmax())
        self._bank.extend(h[best : best + 1])
        self._choice.push(self._candidates[best][0])
        emit = self._choice.emit()
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
        self._candidates = self._report.candidates(view.last, self._k)
        if not self._candidates:
            raise NothingToDraw
        want = Want(hidden=True) if self._choice.num_left == 1 else self._want()
        return Move(tuple(Feed(view.row, (token.id,), want=want) for token, _ in self._candidates))

    def _want(self) -> Want:
        """What a position has to tell for the candidates that follow it."""
        return dataclasses.replace(self._report.want(top_k=self._k), hidden=True)

    def _event(self, p: torch.Tensor, penalty: torch.Tensor, score: torch.Tensor, best: int) -> TraceEvent:
        ids = [token.id for token, _ in self._candidates]
        values = {"tokens": ids, "probabilities": p.tolist(), "penalties": penalty.tolist(), "scores": score.tolist()}
        return TraceEvent(self._num_steps, "candidates", {**values, "token": ids[best]})


def _units(readings: Sequence[Reading]) -> torch.Tensor:
    """Their hidden states at length 1: [readings, hidden]."""
    return normalize(torch.stack([r.hidden for r in readings if r.hidden is not None]), dim=-1)
