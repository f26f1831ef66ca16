"""Who goes next when rows are short, and who gives way to him.

While several clients are there, each may hold an equal share of the rows. A request that keeps its client within that
goes before those that do not, and in want of room the youngest requests of clients beyond their shares give way to it:
each only once it has had its turn, so that it gets on between two preemptions however much must be fed again. Whose
client holds nothing, but asks for more than the share, has to let no more than a whole batch of rows pass; then all
others give way to him likewise. So nobody waits for ever, neither the narrow for the wide nor the wide for the narrow.
Of one client's requests none goes before an older one, nor does any before a more urgent one; with one client alone it
is first come, first served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from decoding.engine.request import LiveRequest

TURN = 1.0
"""Seconds that a request runs, beside those that its return took and as many again, before it gives way."""

LEAST = 16
"""However many clients there are, holding that part of the rows (one in so many) is not too much."""


class Shares:
    """Of one moment, between `running` and `waiting`."""

    def __init__(self, max_rows: int, running: Sequence[LiveRequest], waiting: Sequence[LiveRequest]) -> None:
        self._max_rows = max_rows
        self._running = running
        self._waiting = waiting
        self._held: Counter[str] = Counter()
        for live in running:
            self._held[live.request.client] += live.request.max_rows
        clients = {live.request.client for live in (*running, *waiting)}
        self._share = max(max_rows // min(max(len(clients), 1), LEAST), 1)

    def next_waiting(self) -> LiveRequest:
        """Of the most urgent the first that has a right to room, else the first of all."""
        first = self._waiting[0]
        oldest: dict[str, LiveRequest] = {}
        for live in self._waiting:
            if live.request.priority != first.request.priority:
                break
            oldest.setdefault(live.request.client, live)
        return next((live for live in oldest.values() if self.is_entitled(live)), first)

    def is_entitled(self, live: LiveRequest) -> bool:
        """Whether the request has a right to room: others may give way to it."""
        return self._held[live.request.client] + live.request.max_rows <= self._share or self._is_overdue(live)

    def yielding(self, live: LiveRequest, now: float) -> Iterator[LiveRequest]:
        """Who gives way to the request, one after the other until there is room."""
        held, is_overdue = self._held.copy(), self._is_overdue(live)
        for other in reversed(self._running):
            client = other.request.client
            is_less = client != live.request.client and other.request.priority >= live.request.priority
            if is_less and (is_overdue or held[client] > self._share) and _has_had_its_turn(other, now):
                held[client] -= other.request.max_rows
                yield other

    def _is_overdue(self, live: LiveRequest) -> bool:
        return live.passed_rows >= self._max_rows and not self._held[live.request.client]


def _has_had_its_turn(live: LiveRequest, now: float) -> bool:
    if live.stepped_at is None:
        return False
    return now - live.stepped_at >= TURN + live.stepped_at - live.resumed_at
