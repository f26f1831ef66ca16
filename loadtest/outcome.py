"""How one request ended, as seen by the client. Times are seconds of the monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole answer: it had a finish_reason and its usage.

    started: when it was due (its arrival in an open loop). arrivals: when each piece of text came, never empty; pieces
    that came in one read have one time. Tokens are the server's own count, because a piece may hold none or many.
    """

    started: float
    arrivals: tuple[float, ...]
    ended: float
    prompt_tokens: int
    completion_tokens: int
    wanted_tokens: int

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def gaps(self) -> tuple[float, ...]:
        """The waits between pieces of text: what a reader sees as inter-token latency."""
        return tuple(b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False))

    @property
    def time_per_output_token(self) -> float | None:
        """Mean seconds a token after the first; None for an answer of one token."""
        if self.completion_tokens < 2:
            return None
        return (self.ended - self.arrivals[0]) / (self.completion_tokens - 1)

    @property
    def end_to_end(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True, slots=True)
class Failed:
    """No whole answer.

    `kind` is an HTTP status, or connect, connection, timeout, protocol, stream_error, truncated, no_usage.
    """

    started: float
    ended: float
    kind: str
    detail: str


Outcome = Completed | Failed
