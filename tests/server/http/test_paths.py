"""Paths and methods as clients spell them: HEAD, slashes too many, no /v1; and that a key is asked for all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from server.app import api_routers, create_app
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings
from tests.server.fake_engine import FakeBatcher, make_served, saying
from tests.server.test_service import Served, raw, served
from tests.server.world import model_directory

NAMES = ("tiny", "org/tiny", "/models/tiny")
POSTED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
SPELLINGS = ("{}/", "/{}", "{}//", "//{}///", "/%2F{}", "{}%2f")


@pytest.fixture(scope="module")
def batcher() -> Iterator[FakeBatcher]:
    model = replace(make_served(), names=NAMES)
    batcher = FakeBatcher(model, saying(model, "Hello"))
    cast(Any, batcher).status = "ready"
    yield batcher
    model.grammars.close()


@asynccontextmanager
async def client(batcher: FakeBatcher, *keys: str) -> AsyncIterator[httpx.AsyncClient]:
    known = cast(Batcher, batcher)
    network = NetworkSettings(api_key=keys, docs=True)
    app = create_app(network, known, Metrics("test"), api_routers(known, Limits()))
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
    async with client(batcher, "sesame") as http:
        assert (await http.head("/v1/models")).status_code == 401
        assert (await http.head("/health")).status_code == 200


@pytest.mark.parametrize("path", [path for path in POSTED if path.startswith("/v1/")])
async def test_slashes_too_many_are_as_good(batcher: FakeBatcher, path: str) -> None:
    async with client(batcher) as http:
        for spelling in SPELLINGS:
            answer = await http.post(f"http://test{spelling.format(path)}", json=POSTED[path])
            assert answer.status_code == 200, spelling
        doubled = path.replace("/", "//")
        assert (await http.post(f"http://test{doubled}", json=POSTED[path])).status_code == 200


async def test_what_is_not_the_api_has_one_spelling(batcher: FakeBatcher) -> None:
    async with client(batcher) as http:
        for path in ("//health", "/ready/", "/metrics/", "/tokenize/"):
            assert (await http.get(f"http://test{path}")).status_code == 404


async def test_models_may_have_names_with_slashes(batcher: FakeBatcher) -> None:
    async with client(batcher) as http:
        for spelling in SPELLINGS:
            listed = (await http.get(f"http://test{spelling.format('/v1/models')}")).json()
            assert [model["id"] for model in listed["data"]] == [*NAMES]
            for name in NAMES:
                for sent in (name, name.replace("/", "%2F")):
                    answer = await http.get(f"http://test{spelling.format(f'/v1/models/{sent}')}")
                    assert answer.json()["id"] == name
        assert (await http.get("/v1/models/tin/y")).json()["error"]["code"] == "model_not_found"


async def test_a_key_is_asked_for_however_a_path_is_spelt(batcher: FakeBatcher) -> None:
    async with client(batcher, "sesame") as http:
        paths = {*routes_of(http, "GET"), *routes_of(http, "POST")} - {"/health", "/ready", "/metrics"}
        bare = {path.removeprefix("/v1") for path in paths}
        for path in sorted(paths | bare):
            for spelling in ("{}", *SPELLINGS):
                url = f"http://test{spelling.format(path.format(model_id='tiny'))}"
                for method in ("GET", "HEAD", "POST"):
                    assert (await http.request(method, url)).status_code == 401, (method, url)
        for path in ("//health", "/ready/", "//metrics"):  # open are only the plain ones
            assert (await http.get(f"http://test{path}")).status_code == 401


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/responses", "/v1/responses"),
        ("/models", "/v1/models"),
        ("/models/tiny", "/v1/models/{model_id}"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/completions", "/v1/completions"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health", "/health"),
    ],
)
async def test_a_path_without_v1_is_told_the_right_one(batcher: FakeBatcher, path: str, meant: str) -> None:
    async with client(batcher) as http:
        for answer in (await http.get(path), await http.post(path, json={})):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == f"no such route; did you mean {meant}?"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/nowhere", "/v1/nowhere", "/v1/files/a"])
async def test_of_other_paths_nothing_is_guessed(batcher: FakeBatcher, path: str) -> None:
    async with client(batcher) as http:
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "no such route")


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


def test_dots_are_names_like_others(server: Served) -> None:
    for path in (b"/v1/../health", b"/./health", b"/health/.", b"/v1/%2e%2e/health"):
        answer = raw(server, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ")


def test_refusals_under_another_spelling_are_counted_too(server: Served) -> None:
    with server.http() as http:
        http.post(f"http://127.0.0.1:{server.port}//v1/completions/", content=b"x")  # no type: 415
        text = http.get("/metrics").text
    assert 'polydecode_requests_total{endpoint="completions",outcome="rejected",strategy="none"} 1.0' in text
