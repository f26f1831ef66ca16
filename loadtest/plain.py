"""The answer of one request that is not streamed: a body of JSON, all of whose text arrives when it ends."""

from __future__ import annotations

import msgspec

from loadtest.outcome import Completed, Failed, Outcome
from loadtest.stream import Usage


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


_DECODE_BODY = msgspec.json.Decoder(_Body).decode


class PlainAnswer:
    """Collects one answer's bytes."""

    def __init__(self, started: float, wanted_tokens: int) -> None:
        self._started = started
        self._wanted_tokens = wanted_tokens
        self._body = b""

    def feed(self, data: bytes, _now: float) -> None:
        self._body += data

    def outcome(self, ended: float) -> Outcome:
        """What it came to, now that no more bytes will come."""
        try:
            body = _DECODE_BODY(self._body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Failed(self._started, ended, "protocol", f"bad body: {error}")
        if not body.choices or any(choice.finish_reason is None for choice in body.choices):
            return Failed(self._started, ended, "truncated", "a choice has no finish_reason")
        if body.usage is None:
            return Failed(self._started, ended, "no_usage", "no usage, so no tokens can be counted")
        return Completed(
            started=self._started,
            arrivals=(ended,),
            ended=ended,
            prompt_tokens=body.usage.prompt_tokens,
            completion_tokens=body.usage.completion_tokens,
            wanted_tokens=self._wanted_tokens,
        )
