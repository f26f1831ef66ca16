"""A large body that is wrong is given up at its first faults, and read by another thread than the one that answers."""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

import server
from server.translate import conversation, prompts
from server.wire import body as body_module
from server.wire.base import Wire
from server.wire.requests import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from server.wire.responses import ResponseRequest
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying

MANY = 2000


def chat(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


BAD: list[tuple[type[Wire], dict[str, Any]]] = [
    *((CompletionRequest, {"prompt": [value] * MANY}) for value in (-1, 0.5, True, None, {})),
    (CompletionRequest, {"prompt": [0, *["a"] * MANY]}),
    (CompletionRequest, {"prompt": ["a", *[1] * MANY]}),
    (CompletionRequest, {"prompt": [[-1] * MANY] * MANY}),
    (CompletionRequest, {"prompt": "a", "negative_prompt": [-1] * MANY}),
    (CompletionRequest, {"prompt": "a", "kl_guided": {"prompt": [-1] * MANY}}),
    (CompletionRequest, {"prompt": "a", "decoder_prompt": [-1] * MANY}),
    (CompletionRequest, {"prompt": "a", "stop": [1] * MANY}),
    (CompletionRequest, {"prompt": "a", "dola_layers": [-1] * MANY}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {f"x{i}": 1000 for i in range(MANY)}}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {str(i): "a" for i in range(MANY)}}),
    (CompletionRequest, {"prompt": "a", "edt": {f"x{i}": 1 for i in range(MANY)}}),
    (CompletionRequest, {"prompt": "a", "exponential_decay_length_penalty": ["a"] * MANY}),
    (EmbeddingRequest, {"input": [-1] * MANY}),
    (ChatRequest, {"messages": [{}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", **{f"x{i}": 1 for i in range(MANY)}}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text"}] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}] * MANY}),
    (ResponseRequest, {"input": [{"role": "user"}] * MANY}),
    (ResponseRequest, {"input": [{"role": "user", "content": [{"type": "text"}] * MANY}]}),
    (ResponseRequest, {"input": "a", "include": ["a"] * MANY}),
    (TokenizeRequest, {"documents": [1] * MANY}),
    (DetokenizeRequest, {"tokens": [-1] * MANY}),
]


@pytest.mark.parametrize(("wire", "fields"), BAD, ids=range(len(BAD)))
def test_many_faults_make_few_errors(wire: type[Wire], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as failure:
        wire.model_validate(fields)
    assert failure.value.error_count() <= 8


def schemas_in(schema: object) -> Iterable[dict[str, Any]]:
    """All of pydantic's schemas inside one."""
    if isinstance(schema, dict):
        yield schema
        for inner in schema.values():
            yield from schemas_in(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from schemas_in(inner)


def wire_types(wire: type[Wire] = Wire) -> Iterable[type[Wire]]:
    for each in wire.__subclasses__():
        yield from (each, *wire_types(each))


def test_every_list_of_a_body_is_read_up_to_its_first_fault() -> None:
    modules = [importlib.import_module(f"server.{each.name}") for each in pkgutil.iter_modules(server.__path__)]
    adapters = [value for module in modules for value in vars(module).values() if isinstance(value, TypeAdapter)]
    readers: list[tuple[str, Any]] = [(str(each), each.core_schema) for each in adapters]
    readers += [(each.__name__, each.__pydantic_core_schema__) for each in wire_types()]
    lists = [(name, each) for name, schema in readers for each in schemas_in(schema) if each.get("type") == "list"]
    assert len(lists) > 20
    assert [name for name, each in lists if not each.get("fail_fast")] == []


async def test_what_is_wrong_is_told_as_of_a_small_body(client: httpx.AsyncClient) -> None:
    for fields in ({"prompt": [-1]}, {"prompt": "a", "logit_bias": {"x": 1}}, {"prompt": "a", "edt": {"x": 1}}):
        small = await client.post("/v1/completions", json=fields)
        padded = {**fields, "user": "x" * body_module.INLINE_BYTES}
        assert (await client.post("/v1/completions", json=padded)).json() == small.json()
        assert small.status_code == 400


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/completions", {"prompt": [1]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
async def test_a_large_body_is_read_off_the_event_loop(
    client: httpx.AsyncClient, url: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    for wire in (CompletionRequest, ChatRequest, ResponseRequest, TokenizeRequest, DetokenizeRequest):
        monkeypatch.setattr(wire, "model_validate", recording(wire.model_validate, threads))
    for size in (10, body_module.INLINE_BYTES):
        assert (await client.post(url, json={**fields, "user": "x" * size})).status_code == 200
    small, large = threads
    assert small == threading.get_ident() != large


def recording(function: Any, threads: list[int]) -> Any:
    """The function, noting which thread calls it."""

    def called(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return function(*arguments)

    return called


LONG = make_served(max_model_len=20_000)


@pytest.mark.parametrize(
    ("url", "small", "large"),
    [
        ("/v1/chat/completions", chat("a"), chat("a" * 17_000)),
        ("/v1/chat/completions", chat("a"), chat(*["a"] * 400)),
        ("/v1/completions", {"prompt": [5], "echo": True}, {"prompt": [5] * 5000, "echo": True}),
    ],
)
async def test_the_text_of_a_long_prompt_is_made_off_the_event_loop(
    url: str, small: Any, large: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(conversation, "conversation", recording(conversation.conversation, threads))
    monkeypatch.setattr(prompts, "_echoed", recording(prompts._echoed, threads))
    transport = httpx.ASGITransport(make_app(FakeBatcher(LONG, saying(LONG, "x"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for body in (small, large):
            assert (await client.post(url, json={**body, "max_tokens": 1})).status_code == 200
    assert threads[0] == threading.get_ident() != threads[1]


async def test_ids_beyond_the_context_are_refused_before_they_become_text(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_echoed", None)
    answer = await client.post("/v1/completions", json={"prompt": [5] * 257, "echo": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
