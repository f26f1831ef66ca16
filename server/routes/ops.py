"""The operator's routes: /health (the event loop lives), /ready (requests would be served now), /metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.observe.exposition import Exposition
from server.observe.metrics import Metrics
from server.queue.batcher import RETRY_SECONDS, Batcher
from server.wire.openapi import ERROR, ERRORS


def router(batcher: Batcher, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["operations"])
    shared = Exposition(metrics.exposition)

    @routes.get("/health", summary="Whether the server lives", responses=_statuses(200))
    async def health() -> JSONResponse:
        """200 as soon as the event loop answers, also while the model loads or the worker restarts."""
        return JSONResponse({"status": "ok"})

    @routes.get("/ready", summary="Whether requests would be served now", responses=_statuses(200, 503))
    async def ready() -> JSONResponse:
        """200 while the worker has decoded its canary token and gives signs of life; else 503 with the reason."""
        status = batcher.status
        if status == "ready":
            return JSONResponse({"status": status})
        return JSONResponse({"status": status}, status_code=503, headers={"Retry-After": str(RETRY_SECONDS)})

    @routes.get("/metrics", summary="Metrics for Prometheus", responses=_exposed())
    async def exposition() -> Response:
        """Prometheus' text format."""
        return Response(await shared.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes


def _statuses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of the probes, which are no API errors even at 503."""
    schema = {"type": "object", "properties": {"status": {"type": "string", "description": "In one word."}}}
    content = {"application/json": {"schema": schema}}
    words = {200: "It does.", 503: "Not yet, or not any more; Retry-After says when to ask again."}
    return {status: {"description": words[status], "content": content} for status in statuses}


def _exposed() -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        401: {"description": ERRORS[401], "content": {"application/json": {"schema": ERROR}}},
    }
