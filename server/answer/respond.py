"""Tickets -> the HTTP response, streamed or plain. A client that goes away takes its tickets with it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request, Response

from server.answer.answer import Answer
from server.answer.format import Format
from server.answer.reply import plain_reply
from server.answer.stream import EventStream, stream_reply
from server.http.presence import while_present
from server.queue.ticket import Ticket
from server.settings.limits import Limits


async def respond(
    request: Request,
    tickets: Sequence[Ticket],
    answer: Answer,
    form: Format,
    *,
    ignored: Sequence[str],
    limits: Limits,
) -> Response:
    """Raises ApiError, or ClientDisconnect."""
    if answer.shown.stream:
        stream = EventStream(tickets, answer, form)
        response: Response = await while_present(request.receive, stream_reply(stream, limits.send_timeout))
    else:
        response = await while_present(request.receive, plain_reply(tickets, answer, form))
    return naming_ignored(response, ignored)


def naming_ignored(response: Response, ignored: Sequence[str]) -> Response:
    """The response, its header naming the fields that were accepted without effect."""
    if ignored:
        response.headers["X-Ignored-Params"] = ", ".join(ignored)
    return response
