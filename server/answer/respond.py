"""Tickets -> the HTTP response, streamed or plain. A client that goes away takes its tickets with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fastapi import Request, Response

from server.answer.answer import Answer
from server.answer.format import Whole
from server.answer.reply import plain_reply
from server.answer.stream import Events, stream_reply
from server.http.disconnect import until_disconnect
from server.queue.ticket import Ticket
from server.settings.limits import Limits

Form = TypeVar("Form", bound=Whole)


async def respond(
    request: Request,
    tickets: Sequence[Ticket],
    answer: Answer,
    form: Form,
    stream: Callable[[Sequence[Ticket], Answer, Form], Events],
    *,
    ignored: Sequence[str],
    limits: Limits,
) -> Response:
    """stream: writes the answer as events, if those are wanted. Raises ApiError, or ClientDisconnect."""
    reply: Awaitable[Response]
    if answer.shown.stream:
        reply = stream_reply(stream(tickets, answer, form), limits.send_timeout)
    else:
        reply = plain_reply(tickets, answer, form)
    return naming_ignored(await until_disconnect(request.receive, reply), ignored)


def naming_ignored(response: Response, ignored: Sequence[str]) -> Response:
    """The response, its header naming the fields that were accepted without effect."""
    if ignored:
        response.headers["X-Ignored-Params"] = ", ".join(ignored)
    return response
