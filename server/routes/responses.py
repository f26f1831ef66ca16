"""POST /v1/responses: parse, translate as a chat, submit, answer. Nothing is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.admission import Batcher
from server.answer import Answer
from server.body import parse, read_body
from server.bounds import check_limits, num_rows
from server.examples import RESPONSES
from server.fields import LATER_IN_RESPONSES, Fields, sort_fields
from server.limits import Limits
from server.openapi import operation
from server.presence import while_present
from server.protocol import ChatRequest
from server.reply import plain_reply
from server.respond import naming_ignored
from server.response_fields import ResponseRequest
from server.response_format import ResponseFormat
from server.response_objects import Response as ResponseObject
from server.response_objects import ResponseEvent
from server.response_request import chat_request, fitting, refuse_stored, without_effect
from server.response_stream import ResponseStream
from server.stream import stream_reply
from server.translate import chat_plan

WIRE_FIELDS = ResponseRequest.model_fields.keys() - LATER_IN_RESPONSES.keys()


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[ResponseRequest, ChatRequest, Fields]:
        refuse_stored(body)
        fields = sort_fields(body, WIRE_FIELDS, LATER_IN_RESPONSES)
        wire = parse(ResponseRequest, fields)
        chat = chat_request(wire)
        check_limits(chat, limits)
        return wire, chat, fields

    @routes.post(
        "/v1/responses",
        **operation(
            "Answer an input",
            "OpenAI's responses, of which nothing is stored: send the whole conversation as input. A request picks its "
            "decoding strategy by its fields, as in chat completions.",
            ResponseObject,
            wire=ResponseRequest,
            examples=RESPONSES,
            chunk=ResponseEvent,
        ),
    )
    async def create_response(request: Request) -> Response:
        wire, chat, fields = await read_body(request, limits, read)
        with batcher.reserve("responses", num_rows(chat)) as reservation:
            served = batcher.served
            cuts = wire.truncation == "auto"
            planning = fitting(chat, lambda each: chat_plan(each, served)) if cuts else chat_plan(chat, served)
            plan = await while_present(request.receive, planning)
            tickets = reservation.submit(plan.requests, strategy=plan.strategy, timeout=plan.timeout)
        form = ResponseFormat(wire, plan, served.tokenizer.vocabulary)
        answer = Answer(plan, served, is_chat=True)
        if plan.shown.stream:
            stream = ResponseStream(tickets, answer, form)
            response: Response = await while_present(request.receive, stream_reply(stream, limits.send_seconds))
        else:
            response = await while_present(request.receive, plain_reply(tickets, answer, form))
        return naming_ignored(response, sorted([*fields.ignored, *without_effect(wire)]))

    return routes
