"""Rows in lock step: one that read the prompt, and others in other contexts or models, continue with the same tokens.

    feed the prompt to row c, and to every other row what it is to read instead
    repeat: judge the readings of all, pick x_t from what the verdict leaves, feed x_t to all rows

How the readings become one distribution is the strategy's. n choices fork all rows; penalties see row c alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from decoding.contract.params import Request
from decoding.seam import (
    Draw,
    Emit,
    Feed,
    Json,
    Move,
    NothingToDraw,
    Observation,
    Open,
    RowView,
    Scores,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import Choice
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.report import Report, is_possible

OTHER = Want(full=True, scores=Scores.LOGITS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """scores: float32 [vocab], through the pipeline. trace: what the strategy has to say of the step."""

    scores: torch.Tensor
    is_greedy: bool
    trace: Mapping[str, Json]


def in_context(request: Request, ids: Sequence[int]) -> Feed:
    """Opens a row that reads these ids instead of the prompt; with an encoder, the prompt over these as the source."""
    if request.source_ids:
        return Feed(Open(source_ids=tuple(ids)), request.prompt_ids, want=OTHER)
    return Feed(Open(), tuple(ids), want=OTHER)


def in_model(request: Request, name: str) -> Feed:
    """Opens a row that reads the prompt, and the pause tokens behind it, in another model."""
    pauses = request.pause_ids
    return Feed(Open(name), request.prompt_ids + pauses, want=OTHER, num_injected=len(pauses))


class LockStep(ABC):
    """The row that read the prompt is c. others: what opens the rows beside it. kind: of the trace's events."""

    def __init__(
        self, request: Request, stopping: Stopping, tools: Tools, *, others: Sequence[Feed], kind: str
    ) -> None:
        self._request = request
        self._tools = tools
        self._others = tuple(others)
        self._kind = kind
        self._report = Report(request)
        self._want = self._report.want_logits()
        self._unfinished = [Choice(self._report, stopping, i) for i in range(request.strategy.n)]
        self._num_steps = 0

    @abstractmethod
    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        """What the readings become."""

    def _verdict(self, c: RowView, scores: torch.Tensor, trace: Mapping[str, Json]) -> Verdict:
        """Scores [vocab] in the place of the model's logits, for the pipeline to go on with."""
        return Verdict(self._tools.process(c.row, (), scores), self._request.logits.is_greedy, trace)

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want), *self._others))

    def step(self, seen: Observation) -> Move:
        width = 1 + len(self._others)
        groups = [seen.rows[at : at + width] for at in range(0, len(seen.rows), width)]
        prompt = None
        if self._num_steps == 0:
            prompt = prompt_scores(self._request, seen.rows[0].readings)
            groups = groups * len(self._unfinished)
        feeds: list[Feed] = []
        emits: list[Emit] = []
        trace: list[TraceEvent] = []
        for choice, (c, *others) in zip(self._unfinished, groups, strict=True):
            verdict = self._judge(c, others)
            emits.append(self._emit(choice, c, verdict))
            if not choice.is_over:
                tokens = emits[-1].token_ids
                feeds += (Feed(c.row, tokens, want=self._want), *(Feed(o.row, tokens, want=OTHER) for o in others))
            if self._request.trace:
                trace.append(self._event(emits[-1], verdict))
        self._unfinished = [c for c in self._unfinished if not c.is_over]
        self._num_steps += 1
        return Move(tuple(feeds), emit=tuple(emits), prompt=prompt, trace=tuple(trace))

    def _emit(self, choice: Choice, c: RowView, verdict: Verdict) -> Emit:
        if not is_possible(verdict.scores):
            raise NothingToDraw
        if verdict.is_greedy:
            token = int(verdict.scores.argmax())
        else:
            token = self._tools.draw(verdict.scores, Draw(choice.index), c.last.position)
        choice.push(self._report.picked(c.last, token, verdict.scores))
        return choice.emit()

    def _event(self, emit: Emit, verdict: Verdict) -> TraceEvent:
        values = {"choice": emit.choice, "token": emit.token_ids[0], **verdict.trace}
        return TraceEvent(self._num_steps, self._kind, values)


def less(scores: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    """scores - weight * other, float32 [vocab] each; never NaN or +inf: where the other gives a token no chance, scores
    alone."""
    return torch.where(other.isneginf(), scores, scores - weight * other)
