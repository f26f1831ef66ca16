"""POST /v1/embeddings over a fake engine."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from decoding.contract.frames import Finished, Output
from decoding.contract.params import Pooling, Request
from server.served import Served
from tests.server.fake_engine import FakeBatcher, Step, make_app


def vector_of(request: Request) -> tuple[float, ...]:
    return (float(len(request.prompt_ids)), -0.25, 0.5)


def embedding(request: Request) -> Iterable[Step]:
    yield Output(0, vector=struct.pack("<3f", *vector_of(request)), finished=Finished(0, 7, 0.0, 0.0, 0.0, 0))


@pytest.fixture
def batcher(served: Served) -> FakeBatcher:
    return FakeBatcher(served, embedding)


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json=fields)


async def test_every_form_of_input_becomes_a_vector_each(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    for given, count in (("the dog", 1), (["the", "lazy dog"], 2), ([5, 6, 7], 1), ([[5], [6, 7]], 2)):
        batcher.requests.clear()
        said = (await ask(client, input=given, model="alias")).json()
        assert [item["index"] for item in said["data"]] == list(range(count))
        assert [item["embedding"] for item in said["data"]] == [list(vector_of(r)) for r in batcher.requests]
        num_tokens = sum(len(request.prompt_ids) for request in batcher.requests)
        assert said["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        assert (said["object"], said["model"]) == ("list", "alias")
        assert said["decoding"] == {"strategy": "pooling", "effective": {"pool_by": "mean"}}
        assert all(request.strategy == Pooling("mean") for request in batcher.requests)
    assert batcher.asked[1] == ("embeddings", 2)


async def test_base64_holds_the_same_float32(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    said = (await ask(client, input="the dog", encoding_format="base64")).json()
    raw = base64.b64decode(said["data"][0]["embedding"])
    assert struct.unpack("<3f", raw) == vector_of(batcher.requests[0])


async def test_ignored_fields_are_listed(client: httpx.AsyncClient) -> None:
    assert (await ask(client, input="a", user="me")).headers["X-Ignored-Params"] == "user"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": "a", "dimensions": 8}, "dimensions", "unsupported_field"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", None),
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["a", 3]}, "input", None),
        ({"input": [[5], []]}, "input", None),
        ({"input": [308]}, "input", None),
        ({}, "input", None),
        ({"input": [7] * 257}, "input", "context_length_exceeded"),
        ({"input": "dog " * 3000}, "input", "context_length_exceeded"),
        ({"input": ["a"] * 257}, "input", None),
        ({"input": "a", "temperature": 1}, "temperature", "unknown_field"),
        ({"input": "a", "cache_salt": "s" * 257}, "cache_salt", None),
        ({"input": "a", "priority": -1}, "priority", None),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: dict[str, Any], param: str, code: str | None
) -> None:
    answer = await ask(client, **fields)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)
    assert not batcher.requests


async def test_an_unknown_model_is_a_404(client: httpx.AsyncClient) -> None:
    assert (await ask(client, input="a", model="other")).status_code == 404


async def test_a_model_without_a_language_head_serves_embeddings_alone(served: Served) -> None:
    headless = replace(served, has_head=False, architecture="MistralModel")
    transport = httpx.ASGITransport(make_app(FakeBatcher(headless, embedding)))
    messages = [{"role": "user", "content": "x"}]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await ask(client, input="the dog")).status_code == 200
        for path, body in (
            ("completions", {"prompt": "x"}),
            ("chat/completions", {"messages": messages, "stream": True}),
            ("responses", {"input": "x"}),
        ):
            answer = await client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "no_language_head"
            assert "MistralModel was saved without its language head" in answer.json()["error"]["message"]
        (model, *_) = (await client.get("/v1/models")).json()["data"]
        assert (model["supports"]["chat"], model["supports"]["strategies"]) == (False, [])
