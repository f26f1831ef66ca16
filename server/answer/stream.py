"""The streamed answer: pieces -> server-sent events, as ready bytes.

A stream ends with a finish_reason for every choice and one [DONE], or with one error event and no [DONE].
sse-starlette sends it, pings while nothing comes, and ends it when the client goes. The drain at shutdown is the
batcher's, which lets streams finish; sse-starlette's own, which would cut them off at SIGTERM, is switched off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from server.answer.answer import Answer
from server.answer.choice import Piece
from server.answer.format import Extras, Format
from server.answer.obfuscation import padded_line
from server.answer.outputs import outputs
from server.errors import ApiError
from server.queue.ticket import Ticket
from server.wire.answers import Decoding
from server.wire.event_line import event_line

FIRST_EVENT_SECONDS = 10.0  # how long the status line waits for the first event: an error before it is a plain answer
PING_SECONDS = 10
DONE = b"data: [DONE]\n\n"

logger = logging.getLogger(__name__)


class EventStream:
    """Writes one answer as events."""

    def __init__(self, tickets: Sequence[Ticket], answer: Answer, form: Format) -> None:
        self._tickets = tickets
        self._answer = answer
        self._form = form
        self._shown = answer.shown
        self._begun: set[int] = set()
        self._has_said_decoding = False

    async def events(self) -> AsyncGenerator[bytes]:
        """Each yield is what one output adds, then the end. Raises the ApiError that ended any of the tickets."""
        async with aclosing(outputs(self._tickets)) as numbered:
            async for prompt, output in numbered:
                events = b"".join([self._piece(*piece) for piece in self._answer.push(prompt, output)])
                events += self._untold_trace()
                if events:
                    yield events
        yield self._usage_chunk() + DONE

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _piece(self, choice: int, piece: Piece) -> bytes:
        opening = b"" if choice in self._begun else self._opening(choice)
        if not self._says_something(piece):
            return opening
        line = padded_line if self._shown.obfuscated else event_line
        return opening + line(self._form.delta(choice, piece, self._extras()))

    def _opening(self, choice: int) -> bytes:
        self._begun.add(choice)
        return event_line(self._form.begin(self._answer, choice, self._extras())) if self._form.has_openings else b""

    def _says_something(self, piece: Piece) -> bool:
        """Text held back is sent later; ids, log-probs and counts are not."""
        shown = self._shown
        wanted = shown.token_ids or shown.logprobs is not None or shown.usage_always
        said = piece.text or piece.reasoning or piece.calls
        return bool(said or piece.finish_reason or (wanted and piece.token_ids))

    def _extras(self) -> Extras:
        """usage: running if asked for, null where a usage chunk follows, else absent. decoding: in the first chunk."""
        decoding = self._decoding()
        if self._shown.usage_always:
            return Extras(self._answer.usage(), decoding)
        return Extras(None if self._shown.usage_chunk else UNSET, decoding)

    def _decoding(self) -> Decoding | UnsetType:
        """What runs, in the first chunk; in each what is new of the trace."""
        trace = self._answer.take_trace() or UNSET
        if self._has_said_decoding:
            return UNSET if trace is UNSET else Decoding(trace=trace)
        self._has_said_decoding = True
        return msgspec.structs.replace(self._answer.decoding, trace=trace)

    def _untold_trace(self) -> bytes:
        """A chunk without choices, for what a strategy said of a step in which it committed nothing."""
        return event_line(self._form.end(self._extras())) if self._answer.has_trace else b""

    def _usage_chunk(self) -> bytes:
        if not self._shown.usage_chunk:
            return b""
        return event_line(self._form.end(Extras(self._answer.usage(), self._answer.final_decoding)))


class Events(Protocol):
    """What a StreamResponse sends: ready bytes, ended by what ends the stream, or an ApiError."""

    def events(self) -> AsyncGenerator[bytes]: ...

    def cancel(self) -> None: ...


class StreamResponse(EventSourceResponse):
    """Sends a stream of events. However it ends, the tickets are cancelled; a client that stops reading is cut off."""

    def __init__(
        self, stream: Events, first: asyncio.Task[bytes], rest: AsyncGenerator[bytes], send_timeout: float
    ) -> None:
        AppStatus.enable_automatic_graceful_drain = False
        super().__init__(_guarded(first, rest), sep="\n", ping=PING_SECONDS, send_timeout=send_timeout)
        self._stream = stream
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a client stopped reading its stream and was cut off")
        finally:
            self._stream.cancel()  # first: it cannot be interrupted as the awaits below can
            self._first.cancel()
            await asyncio.wait({self._first})
            await self._rest.aclose()


async def stream_reply(stream: Events, send_timeout: float) -> StreamResponse:
    """The response, once there is something to say. Raises the ApiError that comes before the first event."""
    events = stream.events()
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        stream.cancel()
        raise
    return StreamResponse(stream, first, events, send_timeout)


async def _guarded(first: asyncio.Task[bytes], rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """All events; an error becomes the last of them."""
    try:
        yield await first
        async for events in rest:
            yield events
    except ApiError as error:
        yield event_line(error.body)
    except Exception:
        logger.exception("a stream failed")
        yield event_line(ApiError(500, "internal error", code="internal_error").body)
