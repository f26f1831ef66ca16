"""POST /v1/completions: parse, reserve, translate, submit, answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.answer import Answer
from server.answer.completion_format import CompletionFormat
from server.answer.respond import respond
from server.http.presence import while_present
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.translate.bounds import check_limits, num_rows
from server.translate.translate import completion_plan
from server.wire.answers import Completion
from server.wire.body import parse, read_body
from server.wire.examples import COMPLETIONS
from server.wire.openapi import operation
from server.wire.requests import CompletionRequest
from server.wire.unknown import Fields, sort_fields


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[CompletionRequest, Fields]:
        fields = sort_fields(body, CompletionRequest.model_fields, {})
        wire = parse(CompletionRequest, fields)
        check_limits(wire, limits)
        return wire, fields

    @routes.post(
        "/v1/completions",
        **operation(
            "Continue a text",
            "OpenAI's completions. A request picks its decoding strategy by its fields (GET /v1/strategies); what "
            "OpenAI does not know is marked as an extension. `decoding.effective` in the answer says what ran.",
            Completion,
            wire=CompletionRequest,
            examples=COMPLETIONS,
            chunk=Completion,
        ),
    )
    async def create_completion(request: Request) -> Response:
        wire, fields = await read_body(request, limits, read)
        with batcher.reserve("completions", num_rows(wire)) as reservation:
            served = batcher.served
            plan = await while_present(request.receive, completion_plan(wire, served))
            tickets = reservation.submit(plan.requests, strategy=plan.strategy, timeout=plan.timeout)
        form = CompletionFormat(plan, served.tokenizer.vocabulary)
        return await respond(request, tickets, Answer(plan, served), form, ignored=fields.ignored, limits=limits)

    return routes
