"""Room in the queue for one HTTP request: held while its prompts are tokenized, then turned into tickets.

Leaving the context without `submit` gives the room back. A submitted request is counted once, when its last ticket
ends, under the gravest outcome of its tickets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from decoding.contract.params import Request
from server.queue.exchange import CURRENT
from server.queue.ticket import Outcome, Ticket

if TYPE_CHECKING:
    from server.queue.batcher import Batcher

_BY_GRAVITY: tuple[Outcome, ...] = ("success", "length", "cancelled", "rejected", "error")


class Tally:
    """Gathers the outcomes of one HTTP request's tickets."""

    def __init__(self, num_tickets: int, count: Callable[[Outcome], None]) -> None:
        self._num_open = num_tickets
        self._count = count
        self._outcome: Outcome = "success"

    def add(self, outcome: Outcome) -> None:
        self._num_open -= 1
        self._outcome = max(self._outcome, outcome, key=_BY_GRAVITY.index)
        if self._num_open == 0:
            self._count(self._outcome)


class Reservation:
    """Made by `Batcher.reserve`; to be used in a `with` statement at once."""

    def __init__(self, batcher: Batcher, endpoint: str, num_rows: int, arrived: float) -> None:
        self.endpoint = endpoint
        self.num_rows = num_rows
        self.arrived = arrived
        self._batcher = batcher
        self._is_held = False

    def __enter__(self) -> Self:
        self._batcher.hold(self)
        self._is_held = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._release()

    def submit(self, requests: Sequence[Request], *, strategy: str, timeout: float | None) -> list[Ticket]:
        """Queues all requests or none; a ticket each, in order. `timeout`: seconds from arrival. Raises ApiError."""
        if not self._is_held:
            raise RuntimeError("the reservation is not held")
        exchange = CURRENT.get()
        if exchange is not None:
            requests = [replace(each, client=exchange.client) for each in requests]
        if exchange is not None and exchange.tenant:  # what is cached of one's prompts tells the other nothing
            requests = [replace(each, cache_salt=f"{exchange.tenant}/{each.cache_salt}") for each in requests]
        tickets = self._batcher.submit(self, requests, strategy, timeout)
        self._release()
        if exchange is not None:
            exchange.is_submitted = True
        return tickets

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._batcher.release(self)
