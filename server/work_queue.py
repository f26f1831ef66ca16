"""A few threads of their own for work that grows with what a client sends, and a counted queue before them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from server.errors import ApiError

P = ParamSpec("P")
T = TypeVar("T")


class WorkQueue:
    """First come, first served. max_waiting: more are refused; None: something else bounds how many can come."""

    def __init__(self, name: str, num_threads: int, max_waiting: int | None = None) -> None:
        self._name = name
        self._threads = ThreadPoolExecutor(num_threads, name)
        self._num_free = num_threads
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The work's result. Cancelled while it waits, it is never begun; later, it keeps its thread to the end.

        Raises ApiError 429 where too much waits.
        """
        await self._turn()
        working = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        working.add_done_callback(lambda _: self._pass_on())
        return await asyncio.shield(working)

    async def _turn(self) -> None:
        if self._num_free > 0:
            self._num_free -= 1
            return
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise ApiError(429, f"too many requests wait for {self._name}", code="work_queue_full", retry_after=2)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._pass_on()  # it had just come
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _pass_on(self) -> None:
        """A thread is free."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
