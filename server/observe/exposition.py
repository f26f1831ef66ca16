"""The text of GET /metrics: made once for all who ask at the same time, and never on the event loop.

It takes some 50 ms, in which other threads have the interpreter by turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

REST_SECONDS = 0.25  # between two: however many ask, a sixth of a core is all that they get


class Exposition:
    def __init__(self, compute: Callable[[], bytes]) -> None:
        self._compute = compute
        self._thread = ThreadPoolExecutor(1, "exposition")
        self._next: asyncio.Task[bytes] | None = None
        self._rests_until = 0.0

    async def text(self) -> bytes:
        """No older than this call, unless it was being made already."""
        if self._next is None:
            self._next = asyncio.create_task(self._computed())
        return await asyncio.shield(self._next)  # who goes takes it from nobody else

    async def _computed(self) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._rests_until - loop.time())
            return await loop.run_in_executor(self._thread, self._compute)
        finally:
            self._rests_until = loop.time() + REST_SECONDS
            self._next = None
