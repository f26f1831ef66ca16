"""What a parser makes of an answer's text: plain text, and tool calls piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one tool call. id and name come with its first delta; arguments are the JSON text as it grows."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


Event = str | CallDelta
"""Text of the answer, or news of a call."""
