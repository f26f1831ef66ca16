"""The rows that wait for the engine: how many, whether more may come, and when to come back if not."""

from __future__ import annotations

from collections import deque
from math import ceil

WINDOW_SECONDS = 30.0
UNKNOWN_SECONDS = 5
MAX_SECONDS = 60


class WaitingRows:
    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self.num_rows = 0
        self._starts: deque[tuple[float, int]] = deque()  # (time, rows) of the last WINDOW_SECONDS

    def has_room(self, num_rows: int) -> bool:
        """A request of more rows than the whole queue is let in when nothing else waits: else it could never run."""
        return self.num_rows == 0 or self.num_rows + num_rows <= self._max_rows

    def add(self, num_rows: int) -> None:
        self.num_rows += num_rows

    def remove(self, num_rows: int) -> None:
        """They will not be run."""
        self.num_rows -= num_rows

    def start(self, num_rows: int, now: float) -> None:
        """The engine has begun them."""
        self.num_rows -= num_rows
        self._starts.append((now, num_rows))
        self._forget(now)

    def retry_after(self, now: float) -> int:
        """Seconds until the rows that wait now will have begun, at the rate of the last ones."""
        self._forget(now)
        num_started = sum(num_rows for _, num_rows in self._starts)
        if num_started == 0:
            return UNKNOWN_SECONDS
        seconds = now - self._starts[0][0]
        return min(max(ceil(self.num_rows * seconds / num_started), 1), MAX_SECONDS)

    def _forget(self, now: float) -> None:
        while self._starts and self._starts[0][0] < now - WINDOW_SECONDS:
            self._starts.popleft()
