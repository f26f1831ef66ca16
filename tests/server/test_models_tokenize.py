"""GET /v1/models, POST /tokenize and /detokenize."""

from __future__ import annotations

import httpx
import pytest

from server.catalogue import available
from server.served import Served


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
        "object": "model",
        "owned_by": "polydecode",
    }


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
