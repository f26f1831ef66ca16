"""POST /v1/chat/completions: parse, reserve, translate, submit, answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.chat_format import ChatFormat
from server.answer.respond import respond
from server.http.presence import while_present
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.translate.bounds import check_limits, num_rows
from server.translate.tool_use import with_allowed_tools
from server.translate.translate import chat_plan
from server.wire.answers import ChatChunk, ChatCompletion
from server.wire.body import parse, read_body
from server.wire.examples import CHAT
from server.wire.openapi import operation
from server.wire.requests import ChatRequest
from server.wire.unknown import LATER_IN_CHAT, OLDER_IN_CHAT, Fields, sort_fields

LATER = {**LATER_IN_CHAT, **OLDER_IN_CHAT}


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[ChatRequest, Fields]:
        fields = sort_fields(body, ChatRequest.model_fields, LATER)
        wire = with_allowed_tools(parse(ChatRequest, fields))
        check_limits(wire, limits)
        return wire, fields

    @routes.post(
        "/v1/chat/completions",
        **operation(
            "Answer a conversation",
            "OpenAI's chat completions. A request picks its decoding strategy by its fields (GET /v1/strategies); what "
            "OpenAI does not know is marked as an extension. `decoding.effective` in the answer says what ran.",
            ChatCompletion,
            wire=ChatRequest,
            examples=CHAT,
            chunk=ChatChunk,
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        wire, fields = await read_body(request, limits, read)
        with batcher.reserve("chat", num_rows(wire)) as reservation:
            served = batcher.served
            plan = await while_present(request.receive, chat_plan(wire, served))
            tickets = reservation.submit(plan.requests, strategy=plan.strategy, timeout=plan.timeout)
        form = ChatFormat(plan, served.tokenizer.vocabulary)
        answer = Answer(plan, served, is_chat=True)
        return await respond(request, tickets, answer, form, ignored=fields.ignored, limits=limits)

    return routes
