"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter

from server.admission import Batcher
from server.catalogue import available
from server.openapi import answered
from server.replies import Model, ModelList, Support
from server.reply import JsonResponse
from server.served import Served
from server.translate import resolve_model


def router(batcher: Batcher) -> APIRouter:
    """While no model is ready both answer 503, as everything does that needs one."""
    routes = APIRouter()

    @routes.get("/v1/models", openapi_extra=answered(ModelList))
    async def list_models() -> JsonResponse:
        served = batcher.served
        return JsonResponse(ModelList([_model(name, served) for name in served.names]))

    @routes.get("/v1/models/{model_id:path}", openapi_extra=answered(Model))
    async def get_model(model_id: str) -> JsonResponse:
        served = batcher.served
        return JsonResponse(_model(resolve_model(model_id, served), served))

    return routes


def _model(name: str, served: Served) -> Model:
    has_chat = served.tokenizer.has_chat_template
    supports = Support(has_chat, served.has_draft, [method.name for method in available(served)])
    return Model(name, served.created, served.max_model_len, served.architecture, supports)
