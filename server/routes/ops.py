"""The operator's routes: /health (the event loop lives), /ready (requests would be served now), /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.batcher import RETRY_SECONDS, Batcher
from server.metrics import Metrics


def router(batcher: Batcher, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/health")
    async def health() -> JSONResponse:
        """200 as soon as the event loop answers, also while the model loads or the worker restarts."""
        return JSONResponse({"status": "ok"})

    @routes.get("/ready", responses={503: {"description": "Not now; the status says why."}})
    async def ready() -> JSONResponse:
        """200 while the worker has decoded its canary token and gives signs of life; else 503 with the reason."""
        status = batcher.status
        if status == "ready":
            return JSONResponse({"status": status})
        return JSONResponse({"status": status}, status_code=503, headers={"Retry-After": str(RETRY_SECONDS)})

    @routes.get("/metrics")
    async def exposition() -> Response:
        """Prometheus' text format; in a thread, for it takes some 20 ms."""
        return Response(await asyncio.to_thread(metrics.exposition), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
