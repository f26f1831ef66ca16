"""The bounded queue before the engine: admits rows, submits requests, hands each tick's outputs to their tickets.

It owns the queue, the deadlines, the drain and what a refusal says. The worker orders and runs what it is sent, through
the mailbox. It knows nothing of text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Literal, Self

from decoding.contract.frames import Loaded, Tick, encode, submit_frame
from decoding.contract.params import Request
from server.errors import ApiError
from server.observe.metrics import Metrics
from server.queue.request_context import CURRENT
from server.queue.ticket import Outcome, Tally, Ticket
from server.queue.waiting import WaitingRows
from server.served import Served
from server.settings.sections import QueueSettings
from server.worker.mailbox import Mailbox

Status = Literal["ready", "loading", "draining", "worker_down", "stalled"]

RETRY_SECONDS = 5
_MESSAGES: dict[Status, str] = {
    "loading": "the model is loading",
    "draining": "the server is shutting down",
    "worker_down": "the decode worker is being restarted",
    "stalled": "the decode worker does not answer",
}


class Batcher:
    def __init__(self, settings: QueueSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._waiting = WaitingRows(settings.max_queue)
        self._mailbox: Mailbox | None = None
        self._served: Served | None = None
        self._describe: Callable[[Loaded], Served] | None = None
        self._tickets: dict[int, Ticket] = {}
        self._ids = count(1)
        self._num_held = 0  # reservations neither submitted nor left
        self._num_unseen = 0  # requests submitted since the worker last reported
        self._num_worker_waiting = 0
        self._is_draining = False
        self._is_closed = False  # the drain's time is over
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch_queue(lambda: self._waiting.num_rows, lambda: self._num_worker_waiting + self._num_unseen)

    def connect(self, mailbox: Mailbox, describe: Callable[[Loaded], Served]) -> None:
        """Tells where to submit to and how to describe a loaded model; until then the status is loading."""
        self._mailbox, self._describe = mailbox, describe

    @property
    def status(self) -> Status:
        if self._is_draining:
            return "draining"
        return "loading" if self._mailbox is None else self._mailbox.status

    @property
    def served(self) -> Served:
        """What is served. Raises ApiError 503 before the first load."""
        if self._served is None:
            raise unavailable("loading")
        return self._served

    def reserve(self, endpoint: str, num_rows: int) -> Reservation:
        """Room for that many rows, before anything is tokenized. Raises ApiError 429 or 503."""
        if self.status != "ready" or self._mailbox is None:
            raise unavailable(self.status)
        if not self._waiting.has_room(num_rows) or self._mailbox.is_congested:
            raise ApiError(429, "the queue is full", code="queue_full", retry_after=self._waiting.retry_after(_now()))
        return Reservation(self, endpoint, num_rows, _now())

    async def drain(self, seconds: float) -> None:
        """Refuses what is new, lets the rest finish for so many seconds, then ends it with an error."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            self._is_closed = True
            self._fail_all(unavailable("draining"))

    def hold(self, reservation: Reservation) -> None:
        self._waiting.add(reservation.num_rows)
        self._num_held += 1
        self._idle.clear()

    def release(self, reservation: Reservation) -> None:
        self._waiting.remove(reservation.num_rows)
        self._num_held -= 1
        self._note_idle()

    def submit(
        self, reservation: Reservation, requests: Sequence[Request], strategy: str, timeout: float | None
    ) -> list[Ticket]:
        """Called by the reservation. All or none: whatever can fail comes before the first change."""
        mailbox = self._open_mailbox()
        numbered = [(next(self._ids), request) for request in requests]
        mailbox.send_encoded(b"".join(encode(submit_frame(i, request)) for i, request in numbered))
        self._num_unseen += len(numbered)
        seconds = self._settings.request_timeout if timeout is None else min(timeout, self._settings.request_timeout)
        on_end = partial(self._on_end, Tally(len(numbered), partial(self._count, reservation.endpoint, strategy)))
        series = self._metrics.strategy(strategy)
        tickets = [
            Ticket(
                request_id=request_id,
                request=request,
                series=series,
                arrived=reservation.arrived,
                on_start=self._on_start,
                on_end=on_end,
            )
            for request_id, request in numbered
        ]
        for ticket in tickets:
            self._admit(ticket, reservation.arrived, seconds)
        return tickets

    def worker_loaded(self, loaded: Loaded) -> None:
        self._metrics.worker_loaded(loaded)
        if self._describe is not None:
            self._served = self._describe(loaded)

    def worker_ticked(self, tick: Tick) -> None:
        """Delivers the tick: first every output, then one wake-up for each ticket that got any."""
        self._metrics.worker_ticked(tick.stats)
        self._num_worker_waiting, self._num_unseen = tick.stats.waiting, 0
        now = _now()
        reached: set[Ticket] = set()
        for output in tick.outputs:
            ticket = self._tickets.get(output.request_id)
            if ticket is not None:  # else cancelled while the output was under way
                ticket.push(output, now)
                reached.add(ticket)
        for ticket in reached:
            ticket.wake()

    def worker_lost(self, reason: str) -> None:
        self._metrics.worker_lost()
        self._num_worker_waiting = self._num_unseen = 0
        message = "the decode worker was lost while it ran this request; try again"
        self._fail_all(ApiError(503, message, code="worker_lost", retry_after=RETRY_SECONDS))

    def _open_mailbox(self) -> Mailbox:
        """A draining server still takes what it has reserved room for."""
        if self._is_closed:
            raise unavailable("draining")
        if self._mailbox is None or self._mailbox.status != "ready":
            raise unavailable("loading" if self._mailbox is None else self._mailbox.status)
        return self._mailbox

    def _admit(self, ticket: Ticket, arrived: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        ticket.alarms.append(loop.call_at(arrived + self._settings.queue_timeout, self._expire_queued, ticket))
        ticket.alarms.append(loop.call_at(arrived + seconds, self._expire, ticket))
        self._tickets[ticket.request_id] = ticket
        self._waiting.add(ticket.num_rows)

    def _expire_queued(self, ticket: Ticket) -> None:
        if not ticket.is_started:
            retry_after = self._waiting.retry_after(_now())
            message = "the request waited too long for the engine"
            ticket.fail(ApiError(503, message, code="queue_timeout", retry_after=retry_after), "rejected")

    def _expire(self, ticket: Ticket) -> None:
        ticket.fail(ApiError(504, "the request's time is up", code="timeout"))

    def _fail_all(self, error: ApiError) -> None:
        for ticket in list(self._tickets.values()):
            ticket.fail(error)

    def _on_start(self, ticket: Ticket) -> None:
        self._waiting.start(ticket.num_rows, _now())

    def _on_end(self, tally: Tally, ticket: Ticket, outcome: Outcome, is_worker_done: bool) -> None:
        del self._tickets[ticket.request_id]
        if not ticket.is_started:
            self._waiting.remove(ticket.num_rows)
        if not is_worker_done and self._mailbox is not None:
            self._mailbox.cancel(ticket.request_id)
        tally.add(outcome)
        self._note_idle()

    def _count(self, endpoint: str, strategy: str, outcome: Outcome) -> None:
        self._metrics.requests.labels(endpoint, strategy, outcome).inc()

    def _note_idle(self) -> None:
        if not self._tickets and self._num_held == 0:
            self._idle.set()


class Reservation:
    """Room in the queue for one HTTP request: held while its prompts are tokenized, then turned into tickets.

    Made by `Batcher.reserve`, to be used in a `with` statement at once. Leaving that without `submit` gives it back.
    """

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
        context = CURRENT.get()
        if context is not None:
            requests = [replace(each, client=context.client) for each in requests]
        if context is not None and context.tenant:  # what is cached of one's prompts tells the other nothing
            requests = [replace(each, cache_salt=f"{context.tenant}/{each.cache_salt}") for each in requests]
        tickets = self._batcher.submit(self, requests, strategy, timeout)
        self._release()
        if context is not None:
            context.is_submitted = True
        return tickets

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._batcher.release(self)


def unavailable(status: Status) -> ApiError:
    """503 for a server in that state."""
    return ApiError(503, _MESSAGES[status], code=status, retry_after=RETRY_SECONDS)


def _now() -> float:
    return asyncio.get_running_loop().time()
