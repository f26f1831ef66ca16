"""POST /v1/completions: parse, reserve, translate, submit, answer."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.completion_format import CompletionFormat
from server.answer.respond import respond
from server.answer.stream import EventStream
from server.queue.batcher import Batcher
from server.routes.submit import submitted
from server.settings.limits import Limits
from server.translate.asked import Asked
from server.translate.bounds import asked_within, num_rows
from server.translate.translate import completion_plan
from server.wire.answers import Completion
from server.wire.body import Ignored, parse, read_body
from server.wire.examples import COMPLETIONS
from server.wire.openapi import operation
from server.wire.plugins import PLAIN, WireTypes
from server.wire.requests import CompletionRequest


def router(batcher: Batcher, limits: Limits, wires: WireTypes = PLAIN) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[Asked[CompletionRequest], Ignored]:
        wire, ignored = parse(wires.completion, body)
        return asked_within(wire, limits), ignored

    @routes.post(
        "/v1/completions",
        **operation(
            "Continue a text",
            "OpenAI's completions. A request picks its decoding strategy by its fields (GET /v1/strategies); what "
            "OpenAI does not know is marked as an extension. `decoding.effective` in the answer says what ran.",
            Completion,
            wire=wires.completion,
            examples=COMPLETIONS,
            chunk=Completion,
        ),
    )
    async def create_completion(request: Request) -> Response:
        asked, ignored = await read_body(request, limits, read)
        planned = partial(completion_plan, asked)
        plan, tickets, served = await submitted(request, batcher, "completions", num_rows(asked), planned)
        form = CompletionFormat(plan, served.tokenizer.vocabulary)
        answer = Answer(plan, served)
        return await respond(request, tickets, answer, form, EventStream, ignored=ignored, limits=limits)

    return routes
