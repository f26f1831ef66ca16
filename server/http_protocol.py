"""uvicorn's HTTP/1.1 protocol with the limits it lacks: header bytes, slow senders, connections; refusals are JSON."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import ApiError
from server.refusal import raw_answer

LINGER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_connections: int
    max_header_bytes: int
    header_timeout: float
    body_timeout: float


class _Careful:
    """A transport that takes no offence when it is written to although it is closed: the client has just gone, or was
    cut off, and `connection_lost` is still on its way."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """Made concrete by `limited`. One timer per connection: until the headers are here, then until the body is."""

    limits: ClassVar[ConnectionLimits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Careful(transport)))
        self._is_refused = False
        self._cycles: list[RequestResponseCycle] = []  # requests without an answer: one runs, others are pipelined
        self._is_in_headers = True
        self._num_header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections:
            self._refuse(ApiError(503, "too many connections", code="too_many_connections", retry_after=1))
            return
        self._arm(self.limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._num_header_bytes += len(data)
        super().data_received(data)
        if self._is_in_headers and self._num_header_bytes > self.limits.max_header_bytes and not self._is_refused:
            self._refuse(ApiError(431, "the request line and headers are too large", code="headers_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers = True
        self._num_header_bytes = 0
        self._arm(self.limits.header_timeout)

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._arm(self.limits.body_timeout + LINGER_SECONDS)  # the app itself answers a slow body before that
        super().on_headers_complete()
        self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if not cycle.response_complete]

    def on_message_complete(self) -> None:
        self._disarm()
        self._num_header_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
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


def limited(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The protocol class for uvicorn, which makes its own instances."""
    return type("ConcreteLimitedProtocol", (LimitedProtocol,), {"limits": limits})
