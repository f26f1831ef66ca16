"""A submitted request as its HTTP handler holds it: outputs arrive once per tick, and it ends in exactly one way.

It buffers outputs, wakes its one reader, and measures its own latencies. Deadlines and the worker are the batcher's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from decoding.contract.frames import Finished, Output
from decoding.contract.params import Request
from server.errors import ApiError
from server.observe.metrics import StrategySeries

# What the worker may find wrong with a request -> the code that clients know it by
_CLIENT_ERRORS = {"never_fits": "context_length_exceeded", "nothing_to_draw": "nothing_to_draw"}

Outcome = Literal["success", "length", "cancelled", "rejected", "error"]
_BY_GRAVITY: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(slots=True)
class Timeline:
    """When things happened to a ticket, in seconds of the event loop's clock, and how many tokens it has returned."""

    arrived: float
    first_token: float | None = None
    last_token: float | None = None
    num_tokens: int = 0


class Ticket:
    """Made by `Reservation.submit`; `on_start` and `on_end` are each called at most once."""

    def __init__(
        self,
        *,
        request_id: int,
        request: Request,
        series: StrategySeries,
        arrived: float,
        on_start: Callable[[Ticket], None],
        on_end: Callable[[Ticket, Outcome, bool], None],
    ) -> None:
        self.request_id = request_id
        self.num_rows = request.max_rows
        self.is_started = False
        self.is_over = False
        self.alarms: list[asyncio.TimerHandle] = []
        self._num_prompt_tokens = len(request.prompt_ids)
        self._series = series
        self._timeline = Timeline(arrived)
        self._on_start = on_start
        self._on_end = on_end
        self._outputs: deque[Output] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: ApiError | None = None
        self._outcome: Outcome = "success"

    async def __aiter__(self) -> AsyncIterator[Output]:
        """The outputs, the one with `finished` last. Raises ApiError; ends early only after `cancel`."""
        while True:
            while self._outputs:
                output = self._outputs.popleft()
                yield output
                if output.finished is not None:
                    return
            if self._error is not None:
                raise self._error
            if self.is_over:
                return
            await self._next_tick()

    def cancel(self) -> None:
        """Stops the work and frees the rows; without effect once the ticket is over."""
        self._end("cancelled", is_worker_done=False)

    def fail(self, error: ApiError, outcome: Outcome = "error", *, is_worker_done: bool = False) -> None:
        """Ends the ticket with an error, after the outputs that are already here."""
        if not self.is_over:
            self._error = error
            self._end(outcome, is_worker_done=is_worker_done)

    def push(self, output: Output, now: float) -> None:
        """One tick's output. The caller wakes the reader afterwards."""
        if self.is_over:
            return
        self._start()
        finished = output.finished
        self._measure(output, now)
        if finished is not None and finished.error_code is not None:
            self._push(msgspec.structs.replace(output, finished=None))
            self._fail_finished(finished, finished.error_code)
            return
        self._push(output)
        if finished is not None:
            self._measure_finished(finished, now)
            self._end(self._outcome, is_worker_done=True)

    def wake(self) -> None:
        """Lets the reader run, once however many outputs wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _push(self, output: Output) -> None:
        """An output without content only says that the request has started."""
        if output.chunks or output.trace or output.vector or output.prompt is not None or output.finished is not None:
            self._outputs.append(output)

    async def _next_tick(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _start(self) -> None:
        if not self.is_started:
            self.is_started = True
            self._series.prompt_tokens.inc(self._num_prompt_tokens)
            self._series.request_prompt_tokens.observe(self._num_prompt_tokens)
            self._on_start(self)

    def _end(self, outcome: Outcome, *, is_worker_done: bool) -> None:
        if self.is_over:
            return
        self.is_over = True
        for alarm in self.alarms:
            alarm.cancel()
        self._on_end(self, outcome, is_worker_done)
        self.wake()

    def _fail_finished(self, finished: Finished, code: str) -> None:
        outcome: Outcome = "rejected" if code in _CLIENT_ERRORS else "error"
        self.fail(error_of(finished, code), outcome, is_worker_done=True)

    def _measure(self, output: Output, now: float) -> None:
        num_tokens = sum(len(chunk.token_ids) for chunk in output.chunks)
        if any(chunk.finish_reason == "length" for chunk in output.chunks):
            self._outcome = "length"
        if num_tokens == 0:
            return
        line = self._timeline
        if line.last_token is None:
            line.first_token = now
            self._series.time_to_first_token.observe(now - line.arrived)
        else:
            self._series.inter_token_latency.observe(now - line.last_token)
        line.last_token = now
        line.num_tokens += num_tokens
        self._series.generated_tokens.inc(num_tokens)

    def _measure_finished(self, finished: Finished, now: float) -> None:
        line, series = self._timeline, self._series
        series.cached_tokens.inc(finished.cached_tokens)
        series.queue_time.observe(finished.queue_seconds)
        series.prefill_time.observe(finished.prefill_seconds)
        series.decode_time.observe(finished.decode_seconds)
        series.end_to_end.observe(now - line.arrived)
        series.request_generated_tokens.observe(line.num_tokens)
        if line.first_token is not None and line.num_tokens > 1:
            series.time_per_output_token.observe((now - line.first_token) / (line.num_tokens - 1))


def error_of(finished: Finished, code: str) -> ApiError:
    """What a client is told of a request that the worker ended with that code."""
    if code in _CLIENT_ERRORS:
        return ApiError(400, finished.error_message or "the request cannot be served", code=_CLIENT_ERRORS[code])
    return ApiError(500, "the request failed inside the server", code=code)


class Tally:
    """Counts one HTTP request, when its last ticket ends, by the gravest outcome of its tickets."""

    def __init__(self, num_tickets: int, count: Callable[[Outcome], None]) -> None:
        self._num_open = num_tickets
        self._count = count
        self._outcome: Outcome = "success"

    def add(self, outcome: Outcome) -> None:
        self._num_open -= 1
        self._outcome = max(self._outcome, outcome, key=_BY_GRAVITY.index)
        if self._num_open == 0:
            self._count(self._outcome)
