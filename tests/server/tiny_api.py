"""A stand-in for the HTTP routes: token ids in, token ids out, plain or streamed.

`python -m tests.server.tiny_api FLAGS` serves it through the whole service, with the fake worker behind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from server.errors import ApiError
from server.http.server import bind
from server.observe import logs
from server.observe.error_stream import ErrorStream, never_waiting
from server.queue.batcher import Batcher
from server.queue.ticket import Ticket
from server.service import Parts, Service
from server.settings.limits import Limits
from server.settings.settings import Settings, load
from server.text.tokenizer import Tokenizer
from server.worker.progress import LineDisplay
from tests.server.world import FAKE_WORKER, request


class ByteTokenizer:
    template = None
    eos_id = None

    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(bytes([i]) for i in range(100))

    def special_tokens(self) -> tuple[tuple[int, str], ...]:
        return ()

    def within(self, _: int) -> ByteTokenizer:
        return self


def load_tokenizer(_: Path) -> Tokenizer:
    return cast(Tokenizer, ByteTokenizer())


def router(batcher: Batcher, _: Limits) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def complete(http: Request) -> Response:
        body: dict[str, Any] = json.loads(await http.body())
        with batcher.reserve("completions", 1) as place:
            if body.get("fail"):
                raise RuntimeError("secret words")
            asked = request(*body["prompt"], num_tokens=body.get("max_tokens", 3))
            (ticket,) = place.submit([asked], strategy="sampling", timeout=body.get("timeout"))
        if body.get("stream"):
            return EventSourceResponse(events(ticket), send_timeout=5)
        return JSONResponse({"tokens": [token async for token in tokens(ticket)]})

    return routes


async def tokens(ticket: Ticket) -> AsyncIterator[int]:
    async for output in ticket:
        for token in (token for chunk in output.chunks for token in chunk.token_ids):
            yield token


async def events(ticket: Ticket) -> AsyncIterator[bytes]:
    try:
        async for token in tokens(ticket):
            yield f"data: {token}\n\n".encode()
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield b"data: " + json.dumps(error.body).encode() + b"\n\n"
    finally:
        ticket.cancel()


def main() -> int:
    settings = load(sys.argv[1:]).settings
    with never_waiting() as errors:
        return serve(settings, errors)


def serve(settings: Settings, errors: ErrorStream) -> int:
    logs.configure(settings.log_format, settings.log_level)
    parts = Parts(FAKE_WORKER, load_tokenizer, lambda batcher, limits, _: [router(batcher, limits)])
    with bind(settings.host, settings.port) as listener:
        failure = Service(settings, LineDisplay(sys.stderr), parts, errors).run(listener)
    if failure:
        print(failure, file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
