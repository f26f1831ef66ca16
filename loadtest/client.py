"""HTTP as the load generator needs it: one request on one fresh connection, its body handed on as it arrives.

The client runs on the machine it measures, so it must be cheap. With 64 streams at 10 chunks a second each, against
a trivial SSE server on 2 cores: httpx 319 us a chunk (18 % of a core), asyncio streams with h11 114 us (7 %), a
protocol with httptools 60 us (4 %), the same under uvloop 29 us (2 %). Hence no httpx. A connection a request costs
every server the same and leaves no stale kept-alive socket to stumble over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httptools
import msgspec

from loadtest.outcome import Failed, Outcome
from loadtest.plain import PlainAnswer
from loadtest.stream import Answer
from loadtest.target import Target

OnBody = Callable[[bytes], None]
_DETAIL_BYTES = 300


class _Exchange(asyncio.Protocol):
    """Sends one request when connected; `status` resolves once the response has ended, however it ended."""

    def __init__(self, request: bytes, on_body: OnBody) -> None:
        self._request = request
        self._on_body = on_body
        self._error_body = b""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def error_text(self) -> str:
        return self._error_body.decode(errors="replace")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() == 200:
            self._on_body(body)
        elif len(self._error_body) < _DETAIL_BYTES:
            self._error_body += body[:_DETAIL_BYTES]

    def on_message_complete(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        # A body without a length ends with its connection; whether the answer is whole is the answer's to say.
        if exc is None and self._parser.get_status_code():
            self._end()
        else:
            self._fail(exc or ConnectionResetError("closed before a response"))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        if not self.status.done():
            self.status.set_result(self._parser.get_status_code())
        self.abort()

    def _fail(self, error: Exception) -> None:
        if not self.status.done():
            self.status.set_exception(error)
        self.abort()


class Client:
    """Speaks to one target. `timeout` is seconds for a whole request."""

    def __init__(self, target: Target, timeout: float = 600.0) -> None:
        self._target = target
        self._timeout = timeout
        self._parts = urlsplit(target.url)
        self._host = self._parts.hostname or "localhost"

    async def complete(self, prompt: str, max_tokens: int, started: float | None = None, beams: int = 1) -> Outcome:
        """One completion, streamed if it can be; never raises for what the server or the network does."""
        begin = time.perf_counter() if started is None else started
        fields = self._target.body(prompt, max_tokens, beams)
        # The target's extra fields may ask for another length than the scenario does.
        wanted = fields.get("max_tokens", max_tokens) * beams
        answer: Answer | PlainAnswer = (Answer if fields.get("stream") else PlainAnswer)(begin, wanted)
        body = msgspec.json.encode(fields)
        try:
            status, detail = await self._exchange(
                "POST", self._target.path, body, lambda data: answer.feed(data, time.perf_counter())
            )
        except TimeoutError:
            return Failed(begin, time.perf_counter(), "timeout", f"no whole answer in {self._timeout:g} s")
        except ConnectionRefusedError as error:
            return Failed(begin, time.perf_counter(), "connect", str(error))
        except httptools.HttpParserError as error:
            return Failed(begin, time.perf_counter(), "protocol", str(error))
        except OSError as error:
            return Failed(begin, time.perf_counter(), "connection", str(error))
        if status != 200:
            return Failed(begin, time.perf_counter(), str(status), detail)
        return answer.outcome(time.perf_counter())

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET; OSError, TimeoutError or HttpParserError if there is no response."""
        body = bytearray()
        status, _ = await self._exchange("GET", path, b"", body.extend)
        return status, bytes(body)

    async def _exchange(self, method: str, path: str, body: bytes, on_body: OnBody) -> tuple[int, str]:
        request = _request(method, self._parts, path, self._target.headers, body)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            _, exchange = await loop.create_connection(
                lambda: _Exchange(request, on_body), self._host, _port(self._parts), ssl=_tls(self._parts)
            )
            try:
                return await exchange.status, exchange.error_text
            finally:
                exchange.abort()


def _tls(parts: SplitResult) -> bool | None:
    return True if parts.scheme == "https" else None


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _request(method: str, parts: SplitResult, path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = {"Host": parts.netloc.rpartition("@")[2], "Connection": "close", **headers}
    if body:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {parts.path}{path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
