"""Two groups of requests in turn, so that a GPU computes for one of them while the host reads and advances the other.

What a row feeds next is often for the host to decide: beams are ranked, drafts compared. Nothing can be launched ahead
for those (`launch_ahead.py`), and a device that runs everybody at once stands idle until all are read and advanced. So
each tick launches the forward and the reads of one group before it waits for what the tick before launched for the
other. The device reads the weights once more for it, which takes less than the host takes for many rows.

What is under way counts for nothing until it is read, and a request that has lost its pages since is passed over then.
In which group a request is changes none of its numbers. A launch that raises is forgotten: the next tick runs everybody
at once, and whose fault it is comes out there. Where the groups have become unlike, they are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from decoding.device import HostCopy
from decoding.engine.forward import Enqueued
from decoding.engine.launch_ahead import PAUSE_TICKS, LaunchAhead
from decoding.engine.scheduler import SHORT_FEED, Scheduled

GROUP_ROWS = 64
"""Rows of a group when two are made: for twice as many the host takes longer than a GPU to read the weights."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A forward and its reads under way. copy: brings what was read to the host."""

    scheduled: Sequence[Scheduled]
    parts: list[Enqueued]
    copy: HostCopy


@dataclass(slots=True)
class Counters:
    """Totals since start: groups launched before the other one was read, their rows, and launches that raised."""

    groups: int = 0
    rows: int = 0
    raised: int = 0


class Turns:
    """launch: runs a forward and enqueues its reads, and waits for nothing."""

    def __init__(
        self, launch: Callable[[Sequence[Scheduled]], Launched], launch_ahead: LaunchAhead, *, is_on: bool
    ) -> None:
        self._launch = launch
        self._launch_ahead = launch_ahead
        self._is_on = is_on
        self._under_way: Launched | None = None
        self._num_launches = 0
        self._pause = 0
        self.counters = Counters()

    def next(self, scheduled: Sequence[Scheduled]) -> Launched | None:
        """What is to be read in this tick, with the group after it launched; None: run the scheduled spans as one."""
        reading, self._under_way = self._under_way, None
        self._pause = max(self._pause - 1, 0)
        if reading is None or not _alive(reading):
            first, following = self._divided(scheduled)
            reading = self._launched(first) if first else None
        else:
            following = scheduled if self._goes_on(_alive(reading), scheduled) else []
        if reading is None:
            return None
        if following:
            self._launch_ahead.note([*reading.scheduled, *following])
            self._under_way = self._launched(following)
        return reading

    def rest(self) -> None:
        """Nobody is left who could want what is under way."""
        self._under_way = None

    def _divided(self, scheduled: Sequence[Scheduled]) -> tuple[Sequence[Scheduled], Sequence[Scheduled]]:
        """Each request into the group that has fewer rows so far, and so neighbours into different ones; nobody into
        either where two would be no gain."""
        groups: tuple[list[Scheduled], list[Scheduled]] = ([], [])
        if not self._is_on or self._pause or len(scheduled) < 2 * GROUP_ROWS:
            return groups
        if self._launch_ahead.is_under_way or self._launch_ahead.is_worth(scheduled):
            return groups
        for _, of_request in groupby(scheduled, key=lambda s: s.live):
            min(groups, key=len).extend(of_request)
        return groups if _are_alike(*groups) else ([], [])

    def _goes_on(self, reading: Sequence[Scheduled], scheduled: Sequence[Scheduled]) -> bool:
        """Whether the other group is worth a forward of its own still. Long prompts in both would keep everybody
        waiting for twice the tokens that a tick may take."""
        if min(len(reading), len(scheduled)) < GROUP_ROWS // 2 or not _are_alike(reading, scheduled):
            return False
        if _has_long(reading) and _has_long(scheduled):
            return False
        return not self._launch_ahead.is_worth(scheduled)

    def _launched(self, scheduled: Sequence[Scheduled]) -> Launched | None:
        try:
            launched = self._launch(scheduled)
        except Exception:
            self._pause = PAUSE_TICKS
            self.counters.raised += 1
            return None
        for live in {s.live for s in scheduled}:
            live.under_way = launched
        self.counters.groups += 1
        self.counters.rows += len(scheduled)
        return launched


def landed(launched: Launched) -> list[Scheduled]:
    """The spans of what is read now that still have the pages it wrote to; their requests may be scheduled again."""
    spans = _alive(launched)
    for span in spans:
        span.live.under_way = None
    return spans


def _alive(launched: Launched) -> list[Scheduled]:
    """Of the requests that were neither preempted nor ended since."""
    return [s for s in launched.scheduled if s.live.under_way is launched]


def _are_alike(one: Sequence[Scheduled], other: Sequence[Scheduled]) -> bool:
    """Whether neither has more than twice the rows of the other."""
    fewer, more = sorted((len(one), len(other)))
    return more <= 2 * fewer


def _has_long(scheduled: Sequence[Scheduled]) -> bool:
    return any(s.span.num_tokens > SHORT_FEED for s in scheduled)
