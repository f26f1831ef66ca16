"""What the routes ask of the batcher, which owns it all: reserve rows before tokenizing, submit, follow tickets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, Self

from decoding.contract.frames import Output
from decoding.contract.params import Request
from server.served import Served


class Ticket(Protocol):
    """One prompt in the engine. Iterating, once, ends with the Output that is `finished`, or raises ApiError."""

    def __aiter__(self) -> AsyncIterator[Output]: ...

    def cancel(self) -> None:
        """Give up the request and its rows. Idempotent, and harmless after the end."""


class Reservation(Protocol):
    """Room in the queue. Leaving the context without `submit` gives it back."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def submit(self, requests: Sequence[Request], *, strategy: str, timeout: float | None) -> Sequence[Ticket]:
        """Queue all requests or none; one ticket a request, in order."""


class Batcher(Protocol):
    """Admits requests. Both raise ApiError 503 while no model is ready; `reserve` raises 429 when the queue is full."""

    @property
    def served(self) -> Served: ...

    def reserve(self, endpoint: str, num_rows: int) -> Reservation: ...
