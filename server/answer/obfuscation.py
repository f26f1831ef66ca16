"""Events padded to multiples of a size: who sees a stream's packets, but not into them, learns less of the text."""

from __future__ import annotations

import secrets

from msgspec.structs import replace

from server.wire.answers import ChatChunk, Completion
from server.wire.event_line import event_line
from server.wire.response_objects import ResponseEvent

SIZE = 64  # bytes; longer than most pieces of text


def padded_line(event: Completion | ChatChunk | ResponseEvent) -> bytes:
    """The event with random characters in `obfuscation`, as OpenAI's have them."""
    missing = -len(event_line(replace(event, obfuscation=""))) % SIZE
    return event_line(replace(event, obfuscation=secrets.token_urlsafe(missing)[:missing]))
