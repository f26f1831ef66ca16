"""/openapi.json describes every route and field, and its examples are requests that work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import pytest

from server.app import api_routers, create_app
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings
from server.wire.openapi import EXTENSION
from server.wire.requests import ChatRequest, CompletionRequest
from tests.server.fake_engine import FakeBatcher, make_served, saying

Json = dict[str, Any]
BESIDES_THE_API = {"/health", "/ready", "/metrics"}


@pytest.fixture(scope="module")
def batcher() -> FakeBatcher:
    served = make_served(4096)
    return FakeBatcher(served, saying(served, "Hi"))


@pytest.fixture
async def http(batcher: FakeBatcher) -> AsyncIterator[httpx.AsyncClient]:
    known = cast(Batcher, batcher)
    app = create_app(NetworkSettings(docs=True), known, Metrics("test"), api_routers(known, Limits()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
async def paths(http: httpx.AsyncClient) -> Json:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    return dict(document["paths"])


def operations(paths: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield path, method, operation


def body(operation: Json) -> Json:
    return dict(operation.get("requestBody", {}).get("content", {}).get("application/json", {}))


def undescribed(schema: Json, path: str) -> Iterator[str]:
    """The fields without a description, at any depth."""
    for name, field in schema.get("properties", {}).items():
        if not field.get("description"):
            yield f"{path}.{name}"
        yield from undescribed(field, f"{path}.{name}")
    for key in ("items", "anyOf", "oneOf"):
        inner = schema.get(key, [])
        for each in inner if isinstance(inner, list) else [inner]:
            yield from undescribed(each, path)


async def test_every_route_says_what_it_does(paths: Json) -> None:
    for path, method, operation in operations(paths):
        assert operation["summary"], path
        assert operation["description"], path
        assert method in {"get", "post"}
        assert bool(body(operation)) == (method == "post"), path


async def test_every_field_of_a_request_has_a_description(paths: Json) -> None:
    bodies = [(path, body(operation)) for path, method, operation in operations(paths) if method == "post"]
    assert len(bodies) >= 4
    assert not [field for path, each in bodies for field in undescribed(each["schema"], path)]


async def test_every_example_is_answered(http: httpx.AsyncClient, paths: Json) -> None:
    for path, _, operation in operations(paths):
        if operation.get("requestBody") is not None:
            examples = body(operation)["examples"]
            assert examples, path
            for name, example in examples.items():
                answer = await http.post(path, json=example["value"])
                assert answer.status_code == 200, (path, name, answer.text)
                assert example["summary"]


async def test_answers_and_errors_have_schemas(http: httpx.AsyncClient, paths: Json) -> None:
    for path, _, operation in operations(paths):
        answers = operation["responses"]
        assert "422" not in answers, path
        if path in BESIDES_THE_API:
            continue
        assert answers["200"]["content"]["application/json"]["schema"]["properties"], path
        errors = {status: answer for status, answer in answers.items() if status != "200"}
        assert errors.keys() >= {"401", "404", "500", "503", "default"}, path
        for answer in errors.values():
            assert answer["description"]
            fields = answer["content"]["application/json"]["schema"]["properties"]["error"]["properties"]
            assert fields.keys() == {"message", "type", "param", "code"}
    error = (await http.post("/v1/completions", json={})).json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "wire"), [("/v1/completions", CompletionRequest), ("/v1/chat/completions", ChatRequest)]
)
async def test_extensions_are_marked_and_fields_without_effect_are_told(paths: Json, path: str, wire: Any) -> None:
    fields = body(paths[path]["post"])["schema"]["properties"]
    assert fields.keys() >= wire.model_fields.keys()
    assert fields["num_beams"][EXTENSION]
    assert EXTENSION not in fields["temperature"]
    assert "without effect" in fields["user"]["description"]
