"""How many threads a tick should use, from what the last ones met. Knows no system and no clock: figures come in.

Threads that work in step are as fast as the one that waits longest for a core. Where they wait much, fewer are faster;
where cores idle, more are. Having gone back to more in vain, it waits longer before the next try.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_SECONDS = 0.05  # of ticks, before anything is concluded from them
SPARE_SECONDS = 0.5  # of looking for idle cores
WAITED_CORES = 0.3  # the HTTP process makes a thread wait for a tenth of a core, one busy process for half of one
SPARE_CORES = 0.6  # of one more core
VAIN_SECONDS = 2.0  # more threads that had to go sooner than this were of no use
LONGEST_SECONDS = 32.0  # from one try to the next


@dataclass(slots=True)
class Governor:
    """most: the threads that were asked for. threads: how many the next tick should use."""

    most: int
    threads: int = field(init=False)
    _pause: float = field(default=SPARE_SECONDS, init=False)  # from going down to looking up again
    _not_before: float = field(default=0.0, init=False)
    _raised_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.threads = self.most

    def waited(self, now: float, cores: float) -> None:
        """So many of our threads waited for a core, on average, during ticks of WINDOW_SECONDS or longer."""
        if cores < WAITED_CORES or self.threads == 1:
            return
        was_in_vain = self._raised_at > 0 and now - self._raised_at < VAIN_SECONDS
        self._pause = min(2 * self._pause, LONGEST_SECONDS) if was_in_vain else SPARE_SECONDS
        self._not_before = now + self._pause
        self.threads = max(1, self.threads - max(1, round(cores)))

    def spared(self, now: float, cores: float) -> None:
        """So many cores' time was idle or went to this process, during SPARE_SECONDS or longer."""
        wanted = min(self.most, int(cores + 1 - SPARE_CORES))
        if wanted > self.threads and now >= self._not_before:
            self.threads, self._raised_at = wanted, now

    @property
    def looks_up(self) -> bool:
        """Whether it matters what is spare."""
        return self.threads < self.most
