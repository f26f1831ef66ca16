"""One side of a comparison: brings its server to the start line and, when its turn is over, out of the other's way.

There are three ways: a server that runs anyway, one that is paused between its turns, one that is started anew for
each. On a small machine only the last two are fair: a server that idles may still spin.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import httptools

from loadtest.client import Client
from loadtest.process import ServerProcess

_POLL_SECONDS = 0.1


class NotReady(TimeoutError):
    """The ready URL did not answer 200 in time."""


@dataclass(frozen=True, slots=True)
class Ready:
    """How to learn that a server can be measured."""

    client: Client
    path: str
    limit: float

    async def wait(self, process: ServerProcess | None = None) -> float:
        """Seconds until the path answered 200; ServerDied if the process ends first."""
        begin = time.perf_counter()
        while not await self._answers():
            if process is not None:
                process.check()
            if time.perf_counter() - begin > self.limit:
                raise NotReady(f"{self.path} did not answer 200 within {self.limit:g} s")
            await asyncio.sleep(_POLL_SECONDS)
        return time.perf_counter() - begin

    async def _answers(self) -> bool:
        try:
            status, _ = await self.client.get(self.path)
        except (OSError, httptools.HttpParserError):
            return False
        return status == 200


class Contender(Protocol):
    """`turn` yields the seconds from start to ready, None where the turn starts nothing."""

    async def open(self) -> None: ...
    def turn(self) -> AbstractAsyncContextManager[float | None]: ...
    async def close(self) -> None: ...


class Running:
    """A server that someone else runs."""

    def __init__(self, ready: Ready) -> None:
        self._ready = ready

    async def open(self) -> None:
        return

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float | None]:
        await self._ready.wait()
        yield None

    async def close(self) -> None:
        return


class Paused:
    """Started once, stopped with SIGSTOP whenever it is not its turn; it stays warm."""

    def __init__(self, process: ServerProcess, ready: Ready) -> None:
        self._process = process
        self._ready = ready

    async def open(self) -> None:
        await self._process.start()
        await self._ready.wait(self._process)
        self._process.pause()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float | None]:
        self._process.resume()
        try:
            await self._ready.wait(self._process)
            yield None
        finally:
            self._process.pause()

    async def close(self) -> None:
        await self._process.stop()


class Restarted:
    """Started for each turn and ended after it."""

    def __init__(self, process: ServerProcess, ready: Ready) -> None:
        self._process = process
        self._ready = ready

    async def open(self) -> None:
        return

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float | None]:
        try:
            await self._process.start()
            yield await self._ready.wait(self._process)
        finally:
            await self._process.stop()

    async def close(self) -> None:
        await self._process.stop()
