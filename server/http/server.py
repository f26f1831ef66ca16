"""uvicorn with our shutdown: the first signal drains, a second one ends the process at once."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from types import FrameType

import uvicorn

# A signal to a process group reaches us twice when make, or a shell, passes its own copy on: that is still one signal.
SAME_SIGNAL_SECONDS = 0.3
HANG_UP_SECONDS = 1.0  # before uvicorn loses patience


class BindError(Exception):
    """The address cannot be listened on; the message is for the operator."""


class HttpServer(uvicorn.Server):
    """`drain` runs at the first SIGTERM or SIGINT; connections are closed when it is done."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], kill: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain
        self._kill = kill
        self._first_signal: float | None = None
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        patience = self.config.timeout_graceful_shutdown or HANG_UP_SECONDS
        asyncio.get_running_loop().call_later(patience - HANG_UP_SECONDS, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        """Closes what clients left unread: uvicorn would cancel their requests, as if something had failed here."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            self.stop()
        elif now - self._first_signal > SAME_SIGNAL_SECONDS:
            self._kill()
            os._exit(128 + sig)

    def stop(self) -> None:
        """Begins the drain. Safe in a signal handler."""
        if self._loop is None:
            self.should_exit = True
        else:
            # In a context of its own: the signal may have come amid a request, whose id is not the drain's.
            self._loop.call_soon_threadsafe(self._begin_drain, context=Context())

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that a port in use is known before anything is loaded. Raises BindError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BindError(f"cannot listen on {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise BindError(f"cannot listen on {host} port {port}: {reason}") from None
    listener.setblocking(False)
    return listener
