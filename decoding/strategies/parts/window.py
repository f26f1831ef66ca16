"""What the speculating strategies share: a choice under way, and the commitment of what a verified window leaves.

A window is the last committed token x_0 and its drafts x_1 … x_g in one feed, read at every position; reading i tells
what the target makes of the text up to x_i. What is rejected of it the choice's next feed drops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from decoding.seam import Emit, Feed, Figure, Finish, Json, Move, NothingToDraw, Open, Reading, RowId, TraceEvent, Want
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.parts.drafting import num_matching


@dataclass(frozen=True, slots=True)
class Token:
    """A token to commit. logprob is raw, score of the kind that the request reports; None where it reports none."""

    id: int
    logprob: float | None = None
    score: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """What became of a window: what it commits, its drafts and how many of them that takes in."""

    emit: Emit
    drafts: tuple[int, ...]
    num_accepted: int

    @property
    def is_last(self) -> bool:
        return self.emit.finish is not None

    def event(self, step: int, **probabilities: Sequence[float]) -> TraceEvent:
        """The round for the trace. probabilities: of the drafts, in the target (p) and the draft model (q)."""
        values: dict[str, Json] = {"choice": self.emit.choice, "drafts": self.drafts, "accepted": self.num_accepted}
        values["token_ids"] = self.emit.token_ids
        values.update(probabilities)
        return TraceEvent(step, "verification", values)


@dataclass(slots=True)
class Choice:
    """One choice: `last` is committed and not fed yet; of `row` the last `num_rejected` positions are not committed."""

    index: int
    row: RowId
    last: int
    progress: Progress
    score: float
    drafts: tuple[int, ...] = ()
    num_rejected: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def feed(self, drafts: Sequence[int], want: Want, inner: Want) -> Feed:
        """The window: `last` and the drafts."""
        self.drafts = tuple(drafts)
        return Feed(self.row, (self.last, *drafts), drop=self.num_rejected, want=want, inner=inner)

    def commit(self, row: RowId, tokens: Sequence[Token], stopping: Stopping) -> Round:
        """Commit what the window leaves, all but the last of `tokens` drafts, up to the one that ends the choice."""
        kept, finish = self._push(tokens, stopping)
        num_accepted = min(len(kept), len(tokens) - 1)
        self.row, self.last = row, kept[-1].id
        self.num_rejected = len(self.drafts) - (len(tokens) - 1)
        self.num_drafted += len(self.drafts)
        self.num_accepted += num_accepted
        emit = _emit(self.index, kept)
        if finish is not None:
            score = None if emit.logprobs is None else self.score
            figures = _figures(self.num_drafted, self.num_accepted)
            emit = dataclasses.replace(emit, finish=dataclasses.replace(finish, score=score, figures=figures))
        return Round(emit, self.drafts, num_accepted)

    def _push(self, tokens: Sequence[Token], stopping: Stopping) -> tuple[list[Token], Finish | None]:
        kept = []
        for token in tokens:
            kept.append(token)
            self.score += token.logprob or 0.0
            self.progress, finish = stopping.push(self.progress, token.id)
            if finish is not None:
                return kept, finish
        return kept, None


def moved(
    rounds: Sequence[Round], feeds: Sequence[Feed], hold: Sequence[RowId] = (), trace: Sequence[TraceEvent] = ()
) -> Move:
    """The Move that ends these rounds."""
    return Move(
        tuple(feeds),
        hold=tuple(hold),
        emit=tuple(r.emit for r in rounds),
        drafted=sum(len(r.drafts) for r in rounds),
        accepted=sum(r.num_accepted for r in rounds),
        trace=tuple(trace),
    )


def begun(move: Move, stopping: Stopping) -> list[Choice]:
    """The choices that go on after plain sampling's first step, which made `move`."""
    choices = []
    emits = [emit for emit in move.emit if emit.finish is None]
    for emit, feed in zip(emits, move.feeds, strict=True):
        assert not isinstance(feed.parent, Open)
        (token,) = emit.token_ids
        progress, _ = stopping.push(START, token)
        choices.append(Choice(emit.choice, feed.parent, token, progress, sum(emit.raw_logprobs)))
    return choices


def without_drafts(emits: Sequence[Emit]) -> tuple[Emit, ...]:
    """What plain sampling emitted, each finish with this strategy's figures."""
    return tuple(
        e if e.finish is None else dataclasses.replace(e, finish=dataclasses.replace(e.finish, figures=_figures(0, 0)))
        for e in emits
    )


def matched(drafts: Sequence[int], readings: Sequence[Reading]) -> list[Token]:
    """Sample and match: the target draws y_{i+1} at every x_i; drafts stay while they equal it, then y is committed.

    Every committed token is thus the target's own draw, the very one that plain decoding makes.
    """
    drawn = [next(iter(reading.tokens), None) for reading in readings]
    return [_drawn(reading) for reading in readings[: num_matching(drafts, drawn) + 1]]


def _drawn(reading: Reading) -> Token:
    if not reading.tokens:
        raise NothingToDraw
    if not reading.logprobs:
        return Token(reading.tokens[0])
    return Token(reading.tokens[0], reading.logprobs[0], reading.drawn_scores[0], reading.top)


def _emit(choice: int, tokens: Sequence[Token]) -> Emit:
    ids = tuple(t.id for t in tokens)
    raw = tuple(t.logprob for t in tokens if t.logprob is not None)
    if not raw:
        return Emit(choice, ids)
    return Emit(choice, ids, tuple(t.score or 0.0 for t in tokens), tuple(t.top for t in tokens), raw)


def _figures(num_drafted: int, num_accepted: int) -> tuple[tuple[str, Figure], ...]:
    return (("drafted", num_drafted), ("accepted", num_accepted))
