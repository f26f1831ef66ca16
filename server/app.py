"""create_app: puts routes, error handlers and the surrounding layers together. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI

from server.errors import add_error_handlers
from server.http.access import Access
from server.http.auth import OPEN_PATHS, Auth
from server.http.body_limit import BodyLimit, WireLimits
from server.http.head import Head
from server.http.host_names import HostNames
from server.http.plain_path import PlainPath
from server.http.request_id import RequestId
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.routes import chat, completions, embeddings, models, ops, responses, strategies, tokenize
from server.settings.limits import Limits

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Surface:
    """How the HTTP surface is shown to the outside."""

    wire: WireLimits
    api_keys: tuple[bytes, ...] = ()
    has_docs: bool = False
    is_metrics_open: bool = True
    is_access_logged: bool = True
    host_names: tuple[str, ...] | None = None  # those from elsewhere that are allowed; None: every name is


def api_routers(batcher: Batcher, limits: Limits) -> list[APIRouter]:
    return [
        completions.router(batcher, limits),
        chat.router(batcher, limits),
        responses.router(batcher, limits),
        embeddings.router(batcher, limits),
        models.router(batcher),
        strategies.router(batcher, limits),
        tokenize.router(batcher, limits),
    ]


def create_app(
    surface: Surface, batcher: Batcher, metrics: Metrics, routers: Sequence[APIRouter], lifespan: Lifespan | None = None
) -> FastAPI:
    app = FastAPI(
        title="polydecode",
        lifespan=lifespan,
        openapi_url="/openapi.json" if surface.has_docs else None,
        docs_url="/docs" if surface.has_docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    app.include_router(ops.router(batcher, metrics))
    add_error_handlers(app)
    open_paths = OPEN_PATHS | {"/metrics"} if surface.is_metrics_open else OPEN_PATHS
    app.add_middleware(Head)  # the last one added is the outermost
    app.add_middleware(PlainPath)
    app.add_middleware(BodyLimit, limits=surface.wire)
    app.add_middleware(Auth, keys=surface.api_keys, open_paths=open_paths)
    if surface.host_names is not None:
        app.add_middleware(HostNames, allowed=surface.host_names)
    app.add_middleware(Access, metrics=metrics, is_logged=surface.is_access_logged)
    app.add_middleware(RequestId)
    return app
