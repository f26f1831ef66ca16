"""GET /v1/strategies: every strategy and token-level step, with their parameters and what they go together with."""

from __future__ import annotations

from fastapi import APIRouter

from server.answer.reply import JsonResponse
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.translate.catalogue import catalogue
from server.wire.answers import StrategyList
from server.wire.openapi import operation
from server.wire.plugins import PLAIN, WireTypes


def router(batcher: Batcher, limits: Limits, wires: WireTypes = PLAIN) -> APIRouter:
    """While no model is ready it answers 503: which strategies are available depends on the model."""
    routes = APIRouter()

    about = "Every strategy and token-level step: JSON schema of its parameters, paper, and what combines with what."

    @routes.get("/v1/strategies", **operation("List the decoding strategies", about, StrategyList))
    async def list_strategies() -> JsonResponse:
        return JsonResponse(catalogue(batcher.served, limits, wires))

    return routes
