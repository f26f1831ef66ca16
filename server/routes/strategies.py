"""GET /v1/strategies: every strategy and token-level step, with their parameters and what they go together with."""

from __future__ import annotations

from fastapi import APIRouter

from server.admission import Batcher
from server.catalogue import catalogue
from server.limits import Limits
from server.openapi import answered
from server.replies import StrategyList
from server.reply import JsonResponse


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    """While no model is ready it answers 503: which strategies are available depends on the model."""
    routes = APIRouter()

    @routes.get("/v1/strategies", openapi_extra=answered(StrategyList))
    async def list_strategies() -> JsonResponse:
        return JsonResponse(catalogue(batcher.served, limits))

    return routes
