"""uvicorn's HTTP/1.1 protocol with the limits it lacks: header bytes, slow senders, connections; refusals are JSON."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import ApiError
from server.http.error_response import raw_answer
from server.settings.sections import NetworkSettings

LINGER_SECONDS = 2.0
MAX_REFUSED = 32  # connections above the most that get an answer; the others are closed without
MAX_PIPELINED = 16  # requests that wait for the answer to another one on the same connection


class _Refused(Exception):
    """Stops the parser: what follows on this connection is not read any more."""


class _ForgivingTransport:
    """Drops what is written once it is closing: the client has gone, but `connection_lost` has not been called yet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """Made concrete by `limited`.

    Unless a request is being worked on, a timer runs on each connection: for headers, for a body or for the next
    request. A second timer runs while an answer waits for its reader.
    """

    settings: ClassVar[NetworkSettings]
    send_timeout: ClassVar[float]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _ForgivingTransport(transport)))
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` tells of every byte that was not taken
        self._is_refused = False
        self._cycles: deque[RequestResponseCycle] = deque()  # without an answer: one runs, others are pipelined
        self._is_in_headers = True
        self._num_header_bytes = 0  # since the last byte of a body: headers, trailers, chunk headers, blank lines
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        excess = len(self.connections) - self.settings.max_connections
        if excess > MAX_REFUSED:
            self._is_refused = True
            transport.abort()
            return
        if excess > 0:
            self._refuse(ApiError(503, "too many connections", code="too_many_connections", retry_after=1))
            return
        self._arm(self.settings.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._disarm_reader()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._num_header_bytes += len(data)
        waiting, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        was_idle = self._is_idle
        super().data_received(data)
        if waiting is not None:  # uvicorn would stop it at any byte, also at a blank line
            self._wait_on(waiting, is_idle=was_idle and self._is_idle)
        if self._num_header_bytes > self.settings.max_header_bytes and not self._is_refused:
            self._refuse(_headers_too_large())

    @property
    def _is_idle(self) -> bool:
        """Between two requests."""
        return not self._is_in_headers and not self._cycles_left()

    def _wait_on(self, waiting: asyncio.TimerHandle, *, is_idle: bool) -> None:
        if is_idle and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = waiting
        else:
            waiting.cancel()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers = True
        self._num_header_bytes = 0
        self._arm(self.settings.header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_headers:  # trailers are dropped: what a proxy checked in front of us were the headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._arm(self.settings.body_timeout + LINGER_SECONDS)  # the app itself answers a slow body before that
        super().on_headers_complete()
        self._cycles_left()
        self._cycles.append(self.cycle)
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse(ApiError(400, "too many requests at once on one connection", code="too_many_pipelined"))
            raise _Refused

    def on_body(self, body: bytes) -> None:
        self._num_header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._num_header_bytes = 0
        super().on_message_complete()

    def _cycles_left(self) -> int:
        """Requests without an answer. They are answered in the order in which they came."""
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        return len(self._cycles)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        self._disarm_reader()
        super().resume_writing()

    def _await_reader(self) -> None:
        self._disarm_reader()
        size = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self.send_timeout, self._judge_reader, size)

    def _judge_reader(self, size: int) -> None:
        """A slow reader is waited for, one that took nothing of what was there is not. `close` would wait for it."""
        if self.transport.get_write_buffer_size() < size:
            self._await_reader()
        else:
            self.transport.abort()

    def _disarm_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _unsupported_upgrade_warning(self) -> None:
        """An Upgrade header may be ignored (RFC 9110, 7.8), and a client must not fill the log with it."""

    def send_400_response(self, msg: str) -> None:
        if not self._is_refused:
            self._refuse(ApiError(400, "the request is not valid HTTP", code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answers and closes, but reads on a little: closing on unread data would reset the answer away."""
        self._is_refused = True
        self._disarm()
        self._give_up_requests()
        self.transport.write(raw_answer(error))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _give_up_requests(self) -> None:
        """Sound requests came before: for them the client is gone, and nothing can be written behind the refusal."""
        self.pipeline.clear()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._cut_off)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut_off(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _headers_too_large() -> ApiError:
    return ApiError(431, "the request line and headers are too large", code="headers_too_large")


def limited(settings: NetworkSettings, send_timeout: float) -> type[LimitedProtocol]:
    """The protocol class for uvicorn, which makes its own instances."""
    return type("ConcreteLimitedProtocol", (LimitedProtocol,), {"settings": settings, "send_timeout": send_timeout})
