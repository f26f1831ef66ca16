"""GET /v1/strategies: every strategy and token-level step, with their parameters and what they go together with."""

from __future__ import annotations

from fastapi import APIRouter

from server.admission import Batcher
from server.catalogue import catalogue
from server.limits import Limits
from server.openapi import operation
from server.replies import StrategyList
from server.reply import JsonResponse


def router(batcher: Batcher, limits: Limits) -> APIRouter:
    """While no model is ready it answers 503: which strategies are available depends on the model."""
    routes = APIRouter()

    about = "Every strategy and token-level step: JSON schema of its parameters, paper, and what combines with what."

    @routes.get("/v1/strategies", **operation("List the decoding strategies", about, StrategyList))
    async def list_strategies() -> JsonResponse:
        return JsonResponse(catalogue(batcher.served, limits))

    return routes
