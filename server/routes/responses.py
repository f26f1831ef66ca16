"""POST /v1/responses: parse, translate as a chat, submit, answer. Nothing is stored."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.respond import respond
from server.answer.response_format import ResponseFormat
from server.answer.response_stream import ResponseStream
from server.queue.batcher import Batcher
from server.routes.submit import submitted
from server.settings.limits import Limits
from server.translate.asked import Asked
from server.translate.bounds import asked_within, num_rows
from server.translate.response_request import chat_request, fitting, refuse_stored, without_effect
from server.translate.translate import chat_plan
from server.wire.body import Ignored, parse, read_body
from server.wire.examples import RESPONSES
from server.wire.openapi import operation
from server.wire.plugins import PLAIN, WireTypes
from server.wire.requests import ChatRequest
from server.wire.response_objects import Response as ResponseObject
from server.wire.response_objects import ResponseEvent
from server.wire.responses import ResponseRequest
from server.wire.unknown import LATER_IN_RESPONSES


def router(batcher: Batcher, limits: Limits, wires: WireTypes = PLAIN) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[ResponseRequest, Asked[ChatRequest], Ignored]:
        refuse_stored(body)
        wire, ignored = parse(wires.response, body, LATER_IN_RESPONSES)
        return wire, asked_within(chat_request(wire, wires.chat), limits), sorted([*ignored, *without_effect(wire)])

    @routes.post(
        "/v1/responses",
        **operation(
            "Answer an input",
            "OpenAI's responses, of which nothing is stored: send the whole conversation as input. A request picks its "
            "decoding strategy by its fields, as in chat completions.",
            ResponseObject,
            wire=wires.response,
            examples=RESPONSES,
            chunk=ResponseEvent,
        ),
    )
    async def create_response(request: Request) -> Response:
        wire, asked, ignored = await read_body(request, limits, read)
        planned = partial(fitting if wire.truncation == "auto" else chat_plan, asked)
        plan, tickets, served = await submitted(request, batcher, "responses", num_rows(asked), planned)
        form = ResponseFormat(wire, plan, served.tokenizer.vocabulary)
        answer = Answer(plan, served, is_chat=True)
        return await respond(request, tickets, answer, form, ResponseStream, ignored=ignored, limits=limits)

    return routes
