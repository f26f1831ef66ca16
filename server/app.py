"""create_app: puts routes, error handlers and the surrounding layers together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI

from server.errors import add_error_handlers
from server.http.access import Access
from server.http.auth import OPEN_PATHS, Auth
from server.http.body_limit import BodyLimit
from server.http.head import Head
from server.http.host_names import HostNames, is_loopback
from server.http.plain_path import PlainPath
from server.http.request_id import RequestId
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.routes import chat, completions, embeddings, models, ops, responses, strategies, tokenize
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings
from server.wire.plugins import PLAIN, WireTypes

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def api_routers(batcher: Batcher, limits: Limits, wires: WireTypes = PLAIN) -> list[APIRouter]:
    return [
        completions.router(batcher, limits, wires),
        chat.router(batcher, limits, wires),
        responses.router(batcher, limits, wires),
        embeddings.router(batcher, limits),
        models.router(batcher, wires),
        strategies.router(batcher, limits, wires),
        tokenize.router(batcher, limits),
    ]


def create_app(
    network: NetworkSettings,
    batcher: Batcher,
    metrics: Metrics,
    routers: Sequence[APIRouter],
    *,
    lifespan: Lifespan | None = None,
    is_access_logged: bool = True,
) -> FastAPI:
    app = FastAPI(
        title="polydecode",
        lifespan=lifespan,
        openapi_url="/openapi.json" if network.docs else None,
        docs_url="/docs" if network.docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in routers:
        app.include_router(router)
    app.include_router(ops.router(batcher, metrics))
    add_error_handlers(app)
    open_paths = OPEN_PATHS if network.metrics_auth else OPEN_PATHS | {"/metrics"}
    app.add_middleware(Head)  # the last one added is the outermost
    app.add_middleware(PlainPath)
    app.add_middleware(BodyLimit, settings=network)
    app.add_middleware(Auth, keys=network.api_keys, open_paths=open_paths)
    if is_loopback(network.host) and not network.api_keys:
        app.add_middleware(HostNames, allowed=network.allowed_hosts)
    app.add_middleware(Access, metrics=metrics, is_logged=is_access_logged)
    app.add_middleware(RequestId)
    return app
