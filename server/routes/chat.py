"""POST /v1/chat/completions: parse, reserve, translate, submit, answer."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.chat_format import ChatFormat
from server.answer.respond import respond
from server.answer.stream import EventStream
from server.queue.batcher import Batcher
from server.routes.submit import submitted
from server.settings.limits import Limits
from server.translate.asked import Asked
from server.translate.bounds import asked_within, num_rows
from server.translate.tool_use import with_allowed_tools
from server.translate.translate import chat_plan
from server.wire.answers import ChatChunk, ChatCompletion
from server.wire.body import Ignored, parse, read_body
from server.wire.examples import CHAT
from server.wire.openapi import operation
from server.wire.plugins import PLAIN, WireTypes
from server.wire.requests import ChatRequest
from server.wire.unknown import LATER_IN_CHAT, OLDER_IN_CHAT

LATER = {**LATER_IN_CHAT, **OLDER_IN_CHAT}


def router(batcher: Batcher, limits: Limits, wires: WireTypes = PLAIN) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[Asked[ChatRequest], Ignored]:
        wire, ignored = parse(wires.chat, body, LATER)
        return asked_within(with_allowed_tools(wire), limits), ignored

    @routes.post(
        "/v1/chat/completions",
        **operation(
            "Answer a conversation",
            "OpenAI's chat completions. A request picks its decoding strategy by its fields (GET /v1/strategies); what "
            "OpenAI does not know is marked as an extension. `decoding.effective` in the answer says what ran.",
            ChatCompletion,
            wire=wires.chat,
            examples=CHAT,
            chunk=ChatChunk,
        ),
    )
    async def create_chat_completion(request: Request) -> Response:
        asked, ignored = await read_body(request, limits, read)
        planned = partial(chat_plan, asked)
        plan, tickets, served = await submitted(request, batcher, "chat", num_rows(asked), planned)
        form = ChatFormat(plan, served.tokenizer.vocabulary)
        answer = Answer(plan, served, is_chat=True)
        return await respond(request, tickets, answer, form, EventStream, ignored=ignored, limits=limits)

    return routes
