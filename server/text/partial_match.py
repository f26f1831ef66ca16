"""Text that comes in pieces may end with the beginning of a marker, and is held back until more of it is known."""

from __future__ import annotations

from collections.abc import Collection


def partial_match(text: str, markers: Collection[str]) -> int:
    """Length of the longest end of the text that is the beginning of a marker, but not all of it."""
    longest = max(map(len, markers), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        end = text[-length:]
        if any(len(marker) > length and marker.startswith(end) for marker in markers):
            return length
    return 0
