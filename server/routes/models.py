"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter

from server.answer.reply import JsonResponse
from server.http.plain_path import plain
from server.queue.batcher import Batcher
from server.served import Served
from server.text.retelling import tools_in as told_in
from server.translate.catalogue import available
from server.translate.table import table_of
from server.translate.translate import resolve_model
from server.wire.answers import BesideModel, Model, ModelList, Support
from server.wire.openapi import operation
from server.wire.plugins import PLAIN, WireTypes


def router(batcher: Batcher, wires: WireTypes = PLAIN) -> APIRouter:
    """While no model is ready both answer 503, as everything does that needs one."""
    routes = APIRouter()

    about = "Context length, architecture, what it supports, and what holds where a request says nothing."

    @routes.get("/v1/models", **operation("List the names of the model", about, ModelList))
    async def list_models() -> JsonResponse:
        served = batcher.served
        return JsonResponse(ModelList([_model(name, served, wires) for name in served.names]))

    @routes.get("/v1/models/{model_id:path}", **operation("Describe the model", about, Model))
    async def get_model(model_id: str) -> JsonResponse:
        served = batcher.served
        return JsonResponse(_model(resolve_model(_name(model_id, served), served), served, wires))

    return routes


def _name(model_id: str, served: Served) -> str:
    """A name may hold slashes, which are not told apart in a path."""
    return next((name for name in served.names if plain(name) == plain(model_id)), model_id)


def _model(name: str, served: Served, wires: WireTypes) -> Model:
    return Model(
        name,
        served.created,
        served.max_model_len,
        served.architecture,
        _support(served, wires),
        dict(served.generation_defaults),
        [BesideModel(each.name, each.architecture, each.num_pages * each.page_size) for each in served.beside],
    )


def _support(served: Served, wires: WireTypes) -> Support:
    template = served.tokenizer.template
    tools_in = None
    if served.tools is not None and template is not None:
        tools_in = told_in(template, served.tools)
    return Support(
        chat=served.has_head and served.tokenizer.has_chat_template,
        draft_model=served.has_draft,
        encoder=served.encoder is not None,
        strategies=[strategy.name for strategy in available(served, table_of(wires.chat.PLUGINS))],
        tool_parser=served.tools.NAME if served.tools is not None else None,
        tools_in=tools_in,
        reasoning=served.has_reasoning,
    )
