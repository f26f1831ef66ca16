"""The plain answer: everything gathered, written once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import msgspec
from starlette.responses import Response

from server.answer.answer import Answer
from server.answer.choice import Piece, joined
from server.answer.format import Whole
from server.answer.outputs import outputs
from server.queue.ticket import Ticket


class JsonResponse(Response):
    """A msgspec struct as JSON."""

    media_type = "application/json"

    def render(self, content: msgspec.Struct) -> bytes:
        return msgspec.json.encode(content)


async def plain_reply(tickets: Sequence[Ticket], answer: Answer, form: Whole) -> JsonResponse:
    """Raises the ApiError that ended any of the tickets."""
    pieces: list[list[Piece]] = [[] for _ in range(answer.num_choices)]
    async with aclosing(outputs(tickets)) as numbered:
        async for prompt, output in numbered:
            for choice, piece in answer.push(prompt, output):
                pieces[choice].append(piece)
    return JsonResponse(form.whole(answer, [joined(each) for each in pieces]))
