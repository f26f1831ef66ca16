"""GET /v1/models, POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from server.routes import tokenize
from server.served import Served
from server.settings.limits import Limits
from server.text.tokenizer import LONG_CHARS, Tokenizer
from server.translate.catalogue import available
from tests.server.asking import BESIDE
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying
from tests.server.world import SECONDS, until


async def test_models_are_listed_under_all_their_names(client: httpx.AsyncClient, served: Served) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["tiny", "alias"]
    assert (await client.get("/v1/models/alias")).json() == {
        "id": "alias",
        "created": 1700000000,
        "max_model_len": 256,
        "architecture": "FakeForCausalLM",
        "supports": {
            "chat": True,
            "draft_model": False,
            "encoder": False,
            "strategies": [each.name for each in available(served)],
            "tool_parser": "hermes",
            "tools_in": "system_message",
            "reasoning": False,
        },
        "generation_defaults": {},
        "beside": [],
        "object": "model",
        "owned_by": "polydecode",
    }


async def test_models_beside_the_main_one_are_told_and_answer_nothing_alone(served: Served) -> None:
    several = dataclasses.replace(served, beside=BESIDE)
    app = make_app(FakeBatcher(several, saying(several, "x")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        model = (await client.get("/v1/models/tiny")).json()
        assert model["beside"][1] == {"name": "small", "architecture": "TinyForCausalLM", "kv_tokens": 160}
        assert {"contrastive_decoding", "dexperts", "ensemble", "assisted"} <= {*model["supports"]["strategies"]}
        assert (await client.post("/v1/completions", json={"prompt": "a", "model": "small"})).status_code == 404


async def test_an_answer_bears_the_name_that_was_asked_for(client: httpx.AsyncClient) -> None:
    for asked, answered in ((None, "tiny"), ("alias", "alias")):
        assert (await client.post("/v1/completions", json={"prompt": "a", "model": asked})).json()["model"] == answered


async def test_a_prompt_becomes_tokens_and_back(client: httpx.AsyncClient, served: Served) -> None:
    text = "the dog\n日本 🙂<|im_end|>"
    body = (await client.post("/tokenize", json={"prompt": text})).json()
    assert body == {
        "count": len(body["tokens"]),
        "max_model_len": 256,
        "tokens": list(served.tokenizer.encode(text)),
        "token_strs": None,
    }
    assert (await client.post("/detokenize", json={"tokens": body["tokens"]})).json() == {"prompt": text}


async def test_messages_become_the_tokens_of_the_chat_prompt(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for generate, end in ((True, "<|im_start|>assistant\n"), (False, "")):
        fields = {"messages": messages, "add_generation_prompt": generate, "return_token_strs": True}
        body = (await client.post("/tokenize", json=fields)).json()
        assert "".join(body["token_strs"]) == f"<|im_start|>user\nhi<|im_end|>\n{end}"


@pytest.mark.parametrize(("url", "fields"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})])
async def test_ignored_fields_are_listed(client: httpx.AsyncClient, url: str, fields: dict[str, object]) -> None:
    response = await client.post(url, json={**fields, "user": "me"})
    assert (response.status_code, response.headers["X-Ignored-Params"]) == (200, "user")
    assert "X-Ignored-Params" not in (await client.post(url, json=fields)).headers


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"promt": "a"}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": ["a"]}),
    ],
)
async def test_what_makes_no_sense_is_a_400(client: httpx.AsyncClient, url: str, fields: dict[str, object]) -> None:
    response = await client.post(url, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@asynccontextmanager
async def api(served: Served, limits: Limits | None = None) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(FakeBatcher(served, saying(served, "x")), limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("field", ["prompt", "messages"])
async def test_a_text_that_no_completion_takes_is_refused_before_the_work(
    client: httpx.AsyncClient, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode_up_to", None)
    monkeypatch.setattr(Tokenizer, "chat_text", None)
    text = "7" * 100_000
    body = {"prompt": text} if field == "prompt" else {"messages": [{"role": "user", "content": text}]}
    answer = await client.post("/tokenize", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", field)


async def test_the_number_of_tokens_is_limited(served: Served) -> None:
    """To the setting, or the context of 256 if that is more."""
    for setting, most in ((1, 256), (300, 300)):
        async with api(served, Limits(max_tokenize_tokens=setting)) as client:
            for number, status in ((most, 200), (most + 1, 400)):
                answer = await client.post("/tokenize", json={"prompt": "7" * number})
                assert answer.status_code == status
                assert status == 200 or answer.json()["error"]["param"] == "prompt"
                answer = await client.post("/detokenize", json={"tokens": [5] * number})
                assert answer.status_code == status
                assert status == 200 or answer.json()["error"]["param"] == "tokens"


def noted(threads: list[threading.Thread], function: Any) -> Any:
    def called(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return function(*args, **kwargs)

    return called


async def test_all_the_work_is_done_by_a_thread_of_its_own(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    for name in ("encode_up_to", "decode", "chat_text"):
        monkeypatch.setattr(Tokenizer, name, noted(threads, getattr(Tokenizer, name)))
    monkeypatch.setattr(tokenize, "JsonResponse", noted(threads, tokenize.JsonResponse))
    await client.post("/tokenize", json={"prompt": "a", "return_token_strs": True})
    await client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})
    await client.post("/detokenize", json={"tokens": [5]})
    assert len(threads) == 7
    (thread,) = set(threads)
    assert thread.name.startswith("tokenizing")


async def test_what_waits_is_counted_and_delays_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = threading.Event(), []

    def slow(*_: Any, **__: Any) -> tuple[int, ...]:
        begun.append(1)
        assert go.wait(SECONDS)
        return (5,)

    monkeypatch.setattr(Tokenizer, "encode_up_to", slow)
    monkeypatch.setattr(tokenize, "MAX_WAITING", 2)
    served = make_served(max_model_len=2 * LONG_CHARS)
    async with api(served) as client:
        waiting = [asyncio.create_task(client.post("/tokenize", json={"prompt": "a"})) for _ in range(8)]
        await until(lambda: sum(each.done() for each in waiting) == 5)
        refused = [each.result() for each in waiting if each.done()]
        assert {(each.status_code, each.headers["Retry-After"]) for each in refused} == {(429, "2")}
        assert {each.json()["error"]["code"] for each in refused} == {"work_queue_full"}
        for prompt in ("a" * 5000, "a" * (LONG_CHARS + 1)):
            assert (await client.post("/v1/completions", json={"prompt": prompt})).status_code == 200
        assert len(begun) == 1
        go.set()
        assert [(await each).status_code for each in waiting].count(200) == 3
