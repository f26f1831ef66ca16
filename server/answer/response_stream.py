"""The streamed answer of /v1/responses: OpenAI's typed events, each numbered, the last one with the whole response.

It ends with response.completed or response.incomplete; an error ends it as it ends any other stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from server.answer.answer import Answer
from server.answer.choice import Piece, joined
from server.answer.obfuscation import padded_line
from server.answer.outputs import outputs
from server.answer.response_format import ResponseFormat
from server.queue.ticket import Ticket
from server.wire.event_line import event_line
from server.wire.response_objects import OutputMessage, OutputText, ResponseEvent

PLACE = {"output_index": 0, "content_index": 0}


class ResponseStream:
    """Writes one answer as typed events."""

    def __init__(self, tickets: Sequence[Ticket], answer: Answer, form: ResponseFormat) -> None:
        self._tickets = tickets
        self._answer = answer
        self._form = form
        self._num_events = 0

    async def events(self) -> AsyncGenerator[bytes]:
        """Each yield is what one output adds. Raises the ApiError that ended the ticket."""
        pieces: list[Piece] = []
        opening = True
        async with aclosing(outputs(self._tickets)) as numbered:
            async for prompt, output in numbered:
                new = [piece for _, piece in self._answer.push(prompt, output)]
                events = self._opening() if opening else b""
                opening = False
                events += b"".join(self._delta(piece) for piece in new)
                pieces += new
                if events:
                    yield events
        yield self._closing(joined(pieces))

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _opening(self) -> bytes:
        begun, item_id = self._form.begun(), self._form.item_id
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event(
                "response.output_item.added", output_index=0, item=OutputMessage(item_id, "in_progress", content=[])
            )
            + self._event("response.content_part.added", **PLACE, item_id=item_id, part=OutputText("", []))
        )

    def _delta(self, piece: Piece) -> bytes:
        logprobs = self._form.logprobs(piece)
        if not piece.text and not logprobs:
            return b""
        return self._event(
            "response.output_text.delta", **PLACE, item_id=self._form.item_id, delta=piece.text, logprobs=logprobs
        )

    def _closing(self, said: Piece) -> bytes:
        form, item_id = self._form, self._form.item_id
        whole = form.whole(self._answer, [said])
        return (
            self._event(
                "response.output_text.done", **PLACE, item_id=item_id, text=said.text, logprobs=form.logprobs(said)
            )
            + self._event("response.content_part.done", **PLACE, item_id=item_id, part=form.part(said))
            + self._event("response.output_item.done", output_index=0, item=form.message(said))
            + self._event(f"response.{whole.status}", response=whole)
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = ResponseEvent(kind, self._num_events, **fields)
        self._num_events += 1
        line = padded_line if self._answer.shown.obfuscated and "delta" in fields else event_line
        return b"event: " + kind.encode() + b"\n" + line(event)
