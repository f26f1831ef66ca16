"""The outputs of several tickets in the order they come. Leaving, for whatever reason, cancels every ticket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from decoding.contract.frames import Output
from server.queue.ticket import Ticket

Numbered = tuple[int, Output]


async def outputs(tickets: Sequence[Ticket]) -> AsyncGenerator[Numbered]:
    """(ticket's number, output). Raises the first ApiError that any ticket raises. Use it with aclosing."""
    try:
        if len(tickets) == 1:
            async for output in tickets[0]:
                yield 0, output
            return
        async with aclosing(_merged(tickets)) as merged:
            async for numbered in merged:
                yield numbered
    finally:
        for ticket in tickets:
            ticket.cancel()


async def _merged(tickets: Sequence[Ticket]) -> AsyncGenerator[Numbered]:
    """A task a ticket; the bounded queue makes them wait for a slow reader."""
    queue: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue(maxsize=len(tickets))
    tasks = [asyncio.create_task(_pump(number, ticket, queue)) for number, ticket in enumerate(tickets)]
    try:
        num_running = len(tasks)
        while num_running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(number: int, ticket: Ticket, queue: asyncio.Queue[Numbered | BaseException | None]) -> None:
    try:
        async for output in ticket:
            await queue.put((number, output))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
