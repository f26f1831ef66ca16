"""From a request that was read to its tickets: what the endpoints share that have something decoded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from server.http.disconnect import until_disconnect
from server.queue.batcher import Batcher
from server.queue.ticket import Ticket
from server.served import Served
from server.translate.plan import Plan


async def submitted(
    request: Request, batcher: Batcher, endpoint: str, num_rows: int, planned: Callable[[Served], Awaitable[Plan]]
) -> tuple[Plan, Sequence[Ticket], Served]:
    """The plan, a ticket for each of its prompts, and the model it is for. The rows are reserved before anything is
    planned. Raises ApiError, or ClientDisconnect."""
    with batcher.reserve(endpoint, num_rows) as reservation:
        served = batcher.served
        plan = await until_disconnect(request.receive, planned(served))
        return plan, reservation.submit(plan.requests, strategy=plan.strategy, timeout=plan.timeout), served
