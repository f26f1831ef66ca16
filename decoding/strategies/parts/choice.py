"""One answer under way: its stopping rules, its score, and what of it has yet to be emitted."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.contract.params import Request
from decoding.contract.params.stopping import StopSequence
from decoding.seam import Emit, Figure, Finish, FinishReason
from decoding.stopping import START, Stopping
from decoding.strategies.parts.report import Report, Token


class Choice:
    """score: the cumulative raw log-prob. finish: None until a token ends the choice."""

    __slots__ = ("_report", "_stopping", "_tokens", "finish", "index", "progress", "score")

    def __init__(self, report: Report, stopping: Stopping, index: int = 0) -> None:
        self.index = index
        self.progress = START
        self.finish: Finish | None = None
        self.score = 0.0
        self._report = report
        self._stopping = stopping
        self._tokens: list[Token] = []

    @property
    def is_over(self) -> bool:
        return self.finish is not None

    @property
    def has_new_tokens(self) -> bool:
        """Whether anything was committed since the last `emit`."""
        return bool(self._tokens)

    @property
    def num_left(self) -> int:
        """The most tokens that may still come."""
        return self._stopping.max_tokens - self.progress.num_tokens

    def push(self, token: Token) -> None:
        """Commit a token."""
        self.progress, self.finish = self._stopping.push(self.progress, token.id)
        self.score += token.raw_logprob
        self._tokens.append(token)

    def emit(self, figures: tuple[tuple[str, Figure], ...] = ()) -> Emit:
        """What was committed since the last call. figures: what else to say of the choice once it is over."""
        tokens, self._tokens = self._tokens, []
        finish = self.finish
        if finish is not None:
            score = self.score if self._report.has_score else None
            finish = Finish(finish.reason, finish.stop_reason, score, figures)
        return self._report.emit(self.index, tokens, finish)


def text_ids(tokens: Sequence[Token], finish: Finish | None) -> tuple[int, ...]:
    """Their ids, without the EOS or stop id that ended them: that one is no text."""
    is_ended_by_id = (
        finish is not None and finish.reason is FinishReason.STOP and not isinstance(finish.stop_reason, StopSequence)
    )
    return tuple(t.id for t in (tokens[:-1] if is_ended_by_id else tokens))


def stop_sequence(request: Request, finish: Finish | None) -> bytes | None:
    """The stop sequence that ended the text."""
    reason = None if finish is None else finish.stop_reason
    return request.stopping.stop[reason.index] if isinstance(reason, StopSequence) else None
