"""Paths and methods as clients spell them: HEAD like GET, and that a key is asked for all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from server.app import Surface, api_routers, create_app
from server.batcher import Batcher
from server.body_limit import WireLimits
from server.limits import Limits
from server.metrics import Metrics
from tests.server.fake_engine import FakeBatcher, make_served, saying
from tests.server.test_service import Served, raw, served
from tests.server.world import model_directory

WIRE = WireLimits(1 << 20, 1 << 20, 1 << 16, 5.0)
NAMES = ("tiny", "org/tiny", "/models/tiny")


@pytest.fixture(scope="module")
def batcher() -> Iterator[FakeBatcher]:
    model = replace(make_served(), names=NAMES)
    batcher = FakeBatcher(model, saying(model, "Hello"))
    cast(Any, batcher).status = "ready"
    yield batcher
    model.grammars.close()


@asynccontextmanager
async def client(batcher: FakeBatcher, *keys: bytes) -> AsyncIterator[httpx.AsyncClient]:
    known = cast(Batcher, batcher)
    surface = Surface(WIRE, api_keys=keys, has_docs=True)
    app = create_app(surface, known, Metrics("test"), api_routers(known, Limits()))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def routes_of(http: httpx.AsyncClient, method: str) -> list[str]:
    app = cast(Any, http)._transport.app
    contexts = list(iter_route_contexts(app.routes))
    return [str(each.path_format) for each in contexts if method in (each.methods or ())]


async def test_head_is_get_without_the_body_on_every_route(batcher: FakeBatcher) -> None:
    async with client(batcher) as http:
        paths = routes_of(http, "GET")
        assert {"/v1/models", "/v1/models/{model_id}", "/v1/strategies", "/metrics", "/health", "/ready"} <= {*paths}
        for path in [*(path.format(model_id="tiny") for path in paths), "/v1/models/none", "/nowhere", "/tokenize"]:
            got, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            told = [{k: v for k, v in a.headers.items() if k != "x-request-id"} for a in (got, head)]
            if path != "/metrics":  # which change
                assert told[0] == told[1]
        assert (await http.post("/v1/models")).headers["allow"] == "GET, HEAD"


async def test_head_asks_for_the_key(batcher: FakeBatcher) -> None:
    async with client(batcher, b"sesame") as http:
        assert (await http.head("/v1/models")).status_code == 401
        assert (await http.head("/health")).status_code == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(model_directory(tmp_path_factory.mktemp("models") / "tiny")) as running:
        yield running


def test_a_connection_goes_on_behind_a_head(server: Served) -> None:
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = raw(server, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n" + last)
    head, _, rest = answers.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rest.endswith(b'\r\n\r\n{"status":"ok"}')
