"""Two contexts in lock step: a row that read the prompt and one that read something else continue with the same tokens.

    feed the prompt to row c and the other context to row u (with an encoder: the prompt to both, over two sources)
    repeat: judge the two readings, pick x_t from what the verdict leaves, feed x_t to both rows

How two readings become one distribution is the strategy's. n choices fork both rows; penalties see row c alone.
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


class LockStep(ABC):
    """The row that read the prompt is c, the one that read `context_ids` is u. kind: of the trace's events."""

    def __init__(
        self, request: Request, stopping: Stopping, tools: Tools, *, context_ids: Sequence[int], kind: str
    ) -> None:
        self._request = request
        self._tools = tools
        self._context_ids = tuple(context_ids)
        self._kind = kind
        self._report = Report(request)
        self._want = self._report.want_logits()
        self._unfinished = [Choice(self._report, stopping, i) for i in range(request.strategy.n)]
        self._num_steps = 0

    @abstractmethod
    def _judge(self, c: RowView, u: RowView) -> Verdict:
        """What the two readings become."""

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        if self._request.source_ids:
            other = Feed(Open(source_ids=self._context_ids), self._request.prompt_ids, want=OTHER)
        else:
            other = Feed(Open(), self._context_ids, want=OTHER)
        return Move((open_prompt(self._request, self._want), other))

    def step(self, seen: Observation) -> Move:
        pairs = list(zip(seen.rows[::2], seen.rows[1::2], strict=True))
        prompt = None
        if self._num_steps == 0:
            prompt = prompt_scores(self._request, seen.rows[0].readings)
            pairs = pairs * len(self._unfinished)
        feeds: list[Feed] = []
        emits: list[Emit] = []
        trace: list[TraceEvent] = []
        for choice, (c, u) in zip(self._unfinished, pairs, strict=True):
            verdict = self._judge(c, u)
            emits.append(self._emit(choice, c, verdict))
            if not choice.is_over:
                tokens = emits[-1].token_ids
                feeds += (Feed(c.row, tokens, want=self._want), Feed(u.row, tokens, want=OTHER))
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
