"""One request of a soak, and the judgement whether it was answered: wholly, with an error, or not at all.

Every request that its client does not leave must be answered: by a whole answer, by a JSON error, or by a stream whose
last event is an error. Anything else (a reset, a torn stream, silence) is "unanswered", which must never be.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit

import httptools
import msgspec

from loadtest.soak.kinds import Manner
from loadtest.stream import Events
from loadtest.target import Target

Verdict = Literal["answered", "refused", "failed", "left", "unanswered"]
"""refused: an error before anything else; failed: a stream that ended with an error event; left: by its client."""

SLOW_BYTES = 512
SLOW_SECONDS = 0.02
_DETAIL = 200


@dataclass(frozen=True, slots=True)
class Ending:
    """status: of HTTP, None where there was none. Seconds since the request was sent."""

    verdict: Verdict
    status: int | None
    detail: str
    first_byte: float | None
    seconds: float


class _Reply:
    """What httptools finds in the bytes."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.body = bytearray()
        self.is_complete = False
        self.first_byte: float | None = None

    @property
    def status(self) -> int | None:
        return self.parser.get_status_code() or None

    def on_body(self, data: bytes) -> None:
        self.first_byte = self.first_byte or time.perf_counter()
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = True


async def ask(target: Target, body: bytes, manner: Manner, rng: Random, limit: float) -> Ending:
    """Sends the body and reads as the manner is. Never raises for what the server or the network does."""
    begin = time.perf_counter()
    reply = _Reply()
    patience = rng.uniform(0.0, 1.5) if manner == "leave" else limit
    problem = "closed before the whole answer"
    try:
        async with asyncio.timeout(patience):
            await _exchange(target, body, manner, reply)
    except TimeoutError:
        problem = f"no whole answer in {patience:g} s"
    except (OSError, httptools.HttpParserError) as error:
        problem = f"{type(error).__name__}: {error}"
    now = time.perf_counter()
    first = None if reply.first_byte is None else reply.first_byte - begin
    if not reply.is_complete:
        verdict: Verdict = "left" if manner == "leave" else "unanswered"
        return Ending(verdict, reply.status, problem[:_DETAIL], first, now - begin)
    return Ending(judge(reply.status, bytes(reply.body)), reply.status, _detail(reply.body), first, now - begin)


async def _exchange(target: Target, body: bytes, manner: Manner, reply: _Reply) -> None:
    parts = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=SLOW_BYTES * 4)
    try:
        writer.write(_head(target, parts.netloc, len(body)) + body)
        await writer.drain()
        while not reply.is_complete and (data := await reader.read(SLOW_BYTES if manner == "slow" else 1 << 16)):
            reply.parser.feed_data(data)
            if manner == "slow":
                await asyncio.sleep(SLOW_SECONDS)
    finally:
        writer.close()


def _head(target: Target, host: str, length: int) -> bytes:
    headers = {"Host": host, "Connection": "close", "Content-Type": "application/json", "Content-Length": str(length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | target.headers).items())
    return f"POST {target.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


def judge(status: int | None, body: bytes) -> Verdict:
    """Of a response that ended as HTTP does."""
    if status != 200:
        return "refused" if _is_error(_decoded(body)) else "unanswered"
    events = Events().feed(body)
    if not events:
        return "answered" if _is_whole(_decoded(body)) else "unanswered"
    if events[-1] == b"[DONE]":
        return "answered"
    return "failed" if _is_error(_decoded(events[-1])) else "unanswered"


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _is_error(body: dict[str, Any]) -> bool:
    error = body.get("error")
    return isinstance(error, dict) and bool(error.get("message")) and bool(error.get("type"))


def _is_whole(body: dict[str, Any]) -> bool:
    choices = body.get("choices")
    return bool(choices) and all(choice.get("finish_reason") for choice in choices or ())


def _detail(body: bytearray) -> str:
    return bytes(body[-_DETAIL:]).decode(errors="replace")
