"""POST /v1/embeddings: parse, reserve, translate, submit, gather the vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from server.answer.embedding import embedding_list, gathered
from server.answer.reply import JsonResponse
from server.answer.respond import naming_ignored
from server.http.disconnect import until_disconnect
from server.queue.batcher import Batcher
from server.routes.submit import submitted
from server.settings.limits import Limits
from server.translate.bounds import embedding_within
from server.translate.prompts import num_prompts
from server.translate.translate import embedding_plan
from server.wire.answers import EmbeddingList
from server.wire.body import Ignored, parse, read_body
from server.wire.examples import EMBEDDINGS
from server.wire.openapi import operation
from server.wire.requests import EmbeddingRequest
from server.wire.unknown import LATER_IN_EMBEDDINGS


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    routes = APIRouter()

    def read(body: dict[str, Any]) -> tuple[EmbeddingRequest, Ignored]:
        wire, ignored = parse(EmbeddingRequest, body, LATER_IN_EMBEDDINGS)
        return embedding_within(wire, limits), ignored

    @routes.post(
        "/v1/embeddings",
        **operation(
            "Turn texts into vectors",
            "OpenAI's embeddings: the model's last hidden states, pooled as the server is set, of unit length.",
            EmbeddingList,
            wire=EmbeddingRequest,
            examples=EMBEDDINGS,
        ),
    )
    async def create_embedding(request: Request) -> Response:
        wire, ignored = await read_body(request, limits, read)
        planned = partial(embedding_plan, wire)
        plan, tickets, _ = await submitted(request, batcher, "embeddings", num_prompts(wire.input), planned)
        vectors = await until_disconnect(request.receive, gathered(tickets))
        response = JsonResponse(embedding_list(plan, vectors, is_base64=wire.encoding_format == "base64"))
        return naming_ignored(response, ignored)

    return routes
