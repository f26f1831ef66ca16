"""File descriptors: how many connections there can be, and some that are kept for the worker's next start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator

RESERVED = 128  # not for connections: files, pipes, SPARE, the worker's socket, connections that are being refused
SPARE = 16  # a start of the worker takes about 6
RETRY_SECONDS = 0.5


class TooFewDescriptors(Exception):
    """There would be room for no connection at all; the message is for the operator."""


def room_for_connections(wanted: int) -> int:
    """As many of the wanted connections as this process may open, its limit having been raised as far as that takes.

    Raises TooFewDescriptors.
    """
    limit = _raised_limit(wanted + RESERVED)
    if limit <= RESERVED:
        needed = f"{RESERVED + 1} are needed for one connection, {wanted + RESERVED} for max_connections = {wanted}"
        raise TooFewDescriptors(f"the limit of open files (ulimit -n) is {limit}; {needed}")
    return min(wanted, limit - RESERVED)


def _raised_limit(needed: int) -> int:
    """At most `needed`: a limit of billions makes some programs slow, and children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, needed):
        return needed
    possible = needed if _is_enough(hard, needed) else hard
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower one that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        return possible
    return soft


def _is_enough(limit: int, needed: int) -> bool:
    return limit == resource.RLIM_INFINITY or limit >= needed


class SpareDescriptors:
    """Kept so that they are there when all others are in use. Lives in an event loop, until `close`."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._retry: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """None is held while the block runs; afterwards they are taken, those that are not free as soon as they are."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        try:
            while len(self._held) < SPARE:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._fill)
