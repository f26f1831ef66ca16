"""What the speculating strategies share: a choice's next window, and what is committed of it once it is verified.

A window is the last committed token x_0 and its drafts x_1 … x_g in one feed, read at every position; reading i is the
target's, of the text up to x_i. Rejected drafts are dropped from the row by the choice's next feed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from decoding.seam import Emit, Feed, Figure, Json, Move, Open, Reading, RowId, TraceEvent, Want
from decoding.strategies.parts.choice import Choice
from decoding.strategies.parts.drafting import num_matching
from decoding.strategies.parts.report import Report, Token


@dataclass(frozen=True, slots=True)
class Round:
    """What became of a window: what it commits, its drafts, and how many of those are among it."""

    emit: Emit
    drafts: tuple[int, ...]
    num_accepted: int

    def event(self, step: int, **probabilities: Sequence[float]) -> TraceEvent:
        """The round for the trace. probabilities: of the drafts, in the target (p) and the draft model (q)."""
        values: dict[str, Json] = {"choice": self.emit.choice, "drafts": self.drafts, "accepted": self.num_accepted}
        values["token_ids"] = self.emit.token_ids
        values.update(probabilities)
        return TraceEvent(step, "verification", values)


@dataclass(slots=True)
class Window:
    """A choice and its next window.

    last: its last token, committed and not fed yet.
    num_rejected: so many of the row's last positions are not committed.
    """

    choice: Choice
    row: RowId
    last: int
    drafts: tuple[int, ...] = ()
    num_rejected: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def feed(self, drafts: Sequence[int], want: Want, inner: Want) -> Feed:
        """The window: `last` and the drafts."""
        self.drafts = tuple(drafts)
        return Feed(self.row, (self.last, *drafts), drop=self.num_rejected, want=want, inner=inner)

    def commit(self, row: RowId, tokens: Sequence[Token]) -> Round:
        """Commit `tokens`, accepted drafts and one token more, up to the one that ends the choice."""
        num_kept = 0
        while num_kept < len(tokens) and not self.choice.is_over:
            self.choice.push(tokens[num_kept])
            num_kept += 1
        num_accepted = min(num_kept, len(tokens) - 1)
        self.row, self.last = row, tokens[num_kept - 1].id
        self.num_rejected = len(self.drafts) - (len(tokens) - 1)
        self.num_drafted += len(self.drafts)
        self.num_accepted += num_accepted
        return Round(self.choice.emit(_figures(self.num_drafted, self.num_accepted)), self.drafts, num_accepted)


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


def begun(choices: Sequence[Choice], move: Move) -> list[Window]:
    """The windows of the choices that go on after plain sampling's first step, which made `move`."""
    windows = []
    for choice, feed in zip(choices, move.feeds, strict=True):
        assert not isinstance(feed.parent, Open)
        windows.append(Window(choice, feed.parent, feed.tokens[0]))
    return windows


def without_drafts(emits: Sequence[Emit]) -> tuple[Emit, ...]:
    """What plain sampling emitted, each finish with this strategy's figures."""
    return tuple(
        e if e.finish is None else e._replace(finish=dataclasses.replace(e.finish, figures=_figures(0, 0)))
        for e in emits
    )


def matched(report: Report, drafts: Sequence[int], readings: Sequence[Reading]) -> list[Token]:
    """Sample and match: the target draws y_{i+1} at every x_i; drafts stay while they equal it, then y is committed.

    Every committed token is thus the target's own draw, the very one that plain decoding makes.
    """
    drawn = [next(iter(reading.tokens), None) for reading in readings]
    return [report.drawn(reading) for reading in readings[: num_matching(drafts, drawn) + 1]]


def _figures(num_drafted: int, num_accepted: int) -> tuple[tuple[str, Figure], ...]:
    return (("drafted", num_drafted), ("accepted", num_accepted))
