"""Holds back text that may be the beginning of a stop string, and cuts the text where a stop begins.

The worker decides that a row stopped, and at which token. Text outside the hold is settled: no stop can reach it.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.text.partial_match import partial_match


class StopText:
    """One choice's text on its way out. `include` keeps the stop string itself in the text.

    bare: the stops without the names of hidden tokens: what there is in the text of one that was found among those.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False, bare: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._bare = tuple(bare) or self._stops
        # A hidden token must still complete a bare stop: its text alone is never all of it
        self._markers = {*self._stops, *(f"{stop} " for stop in self._bare if stop not in self._stops)}
        self._include = include
        self._held = ""
        self._last_start = 0

    def push(self, text: str) -> None:
        """Add one token's text."""
        self._last_start = len(self._held)
        self._held += text

    def settled(self) -> str:
        """Take the text that no stop can begin in."""
        end = len(self._held) - partial_match(self._held, self._markers)
        text, self._held = self._held[:end], self._held[end:]
        self._last_start = len(self._held)
        return text

    def rest(self) -> str:
        """Take all that is left: the row ended without a stop string."""
        text, self._held = self._held, ""
        return text

    def cut(self, index: int = 0) -> str:
        """Take what stands before the stop that the last token completed; of several, the one that begins first.

        index: of a stop that is known to be complete.
        """
        matches = [(start, stop) for stop in self._stops if (start := self._find(stop)) >= 0]
        if not matches:
            matches = self._find_bare(self._bare[index])
        if not matches:
            return self.rest()
        start, stop = min(matches)
        return self._held[: start + len(stop) if self._include else start]

    def _find_bare(self, stop: str) -> list[tuple[int, str]]:
        """Inside the last token or, where that is hidden, before it."""
        start = self._find(stop) if stop else -1
        start = len(self._held) - len(stop) if start < 0 and self._held.endswith(stop) else start
        return [(start, stop)] if start >= 0 else []

    def _find(self, stop: str) -> int:
        """Where `stop` begins if it ends inside the last token: an earlier one did not count (min_tokens)."""
        return self._held.find(stop, max(0, self._last_start - len(stop) + 1))
