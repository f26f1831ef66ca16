"""POST /v1/responses: parse, translate as a chat, submit, answer. Nothing is stored."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.reply import plain_reply
from server.answer.respond import naming_ignored
from server.answer.response_format import ResponseFormat
from server.answer.response_stream import ResponseStream
from server.answer.stream import stream_reply
from server.http.presence import while_present
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.translate.bounds import check_limits, num_rows
from server.translate.response_request import chat_request, fitting, refuse_stored, without_effect
from server.translate.translate import chat_plan
from server.wire.body import parse, read_body
from server.wire.examples import RESPONSES
from server.wire.openapi import operation
from server.wire.requests import ChatRequest
from server.wire.response_objects import Response as ResponseObject
from server.wire.response_objects import ResponseEvent
from server.wire.responses import ResponseRequest
from server.wire.unknown import LATER_IN_RESPONSES, Fields, sort_fields

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
            response: Response = await while_present(request.receive, stream_reply(stream, limits.send_timeout))
        else:
            response = await while_present(request.receive, plain_reply(tickets, answer, form))
        return naming_ignored(response, sorted([*fields.ignored, *without_effect(wire)]))

    return routes
