"""The answer of one streamed request, read from the bytes of its body: server-sent events holding OpenAI chunks.

Knows completions and chat chunks alike, and nothing of HTTP or of clocks: whoever feeds it says what time it is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.outcome import Completed, Failed, Outcome


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        return bool(self.text) or (self.delta is not None and bool(self.delta.content))


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_DECODE_CHUNK = msgspec.json.Decoder(Chunk).decode


class Events:
    """Cuts a body into the data of its events. One data line an event: a JSON text holds no line break."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class Answer:
    """Collects one answer's text times, usage and end."""

    def __init__(self, started: float, wanted_tokens: int) -> None:
        self._started = started
        self._wanted_tokens = wanted_tokens
        self._events = Events()
        self._arrivals: list[float] = []
        self._finished_at: float | None = None
        self._usage: Usage | None = None
        self._error: tuple[str, str] | None = None

    def feed(self, data: bytes, now: float) -> None:
        for event in self._events.feed(data):
            if event != b"[DONE]":
                self._read(event, now)

    def _read(self, event: bytes, now: float) -> None:
        try:
            chunk = _DECODE_CHUNK(event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._error = self._error or ("protocol", f"bad chunk: {error}")
            return
        if chunk.error is not None:
            self._error = self._error or ("stream_error", str(chunk.error))
        if any(choice.has_text for choice in chunk.choices):
            self._arrivals.append(now)
        if any(choice.finish_reason is not None for choice in chunk.choices):
            self._finished_at = now
        if chunk.usage is not None:
            self._usage = chunk.usage

    def outcome(self, ended: float) -> Outcome:
        """What it came to, now that no more bytes will come."""
        if self._error is not None:
            return Failed(self._started, ended, *self._error)
        if self._finished_at is None:
            return Failed(self._started, ended, "truncated", "the stream ended without a finish_reason")
        if self._usage is None:
            return Failed(self._started, ended, "no_usage", "the stream held no usage, so no tokens can be counted")
        return Completed(
            started=self._started,
            # A lone token may have no text (a special token, half a character): then its end is its arrival.
            arrivals=tuple(self._arrivals) or (self._finished_at,),
            ended=ended,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            wanted_tokens=self._wanted_tokens,
        )
