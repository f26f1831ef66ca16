"""What is asked for together: scores of prompts, tokens that the model lacks, numbers beyond what is encoded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.text.tool_parsers.registry import FORMATS
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying

URL = "/v1/completions"


NUM_SIGNS = 94  # the tokenizer's first ids are the printable signs of ASCII


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    served = replace(
        make_served(32768), tools=FORMATS["hermes"], max_prompt_scores=1000, **getattr(request, "param", {})
    )
    transport = httpx.ASGITransport(make_app(FakeBatcher(served, saying(served, "x"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        yield http


async def refused(client: httpx.AsyncClient, fields: dict[str, Any], url: str = URL) -> str:
    response = await client.post(url, json=fields)
    assert response.status_code == 400, response.text
    return str(response.json()["error"]["param"])


async def test_prompt_scores_of_all_choices_are_bounded_together(client: httpx.AsyncClient) -> None:
    prompt = [5] * 100
    assert await refused(client, {"prompt": prompt, "n": 8, "prompt_logprobs": 1}) == "prompt_logprobs"
    assert await refused(client, {"prompt": prompt, "n": 4, "echo": True, "logprobs": 2}) == "logprobs"
    assert await refused(client, {"prompt": [prompt] * 6, "prompt_logprobs": 1}) == "prompt_logprobs"
    assert (await client.post(URL, json={"prompt": prompt, "n": 4, "prompt_logprobs": 1})).status_code == 200


@pytest.mark.parametrize("client", [{"vocab_size": NUM_SIGNS}], indirect=True)
async def test_a_text_with_a_token_that_the_model_lacks_is_refused(client: httpx.AsyncClient) -> None:
    """Its bytes are tokens beyond the width of the logits: it would have been a 500 of the worker's."""
    assert await refused(client, {"prompt": "é"}) == "prompt"
    assert await refused(client, {"messages": [{"role": "user", "content": "é"}]}, "/v1/chat/completions") == "messages"
    assert await refused(client, {"input": "é"}, "/v1/embeddings") == "input"
    assert (await client.post(URL, json={"prompt": "e"})).status_code == 200


@pytest.mark.parametrize("start", [1e30, 2**64, 2**31])
async def test_a_decay_that_starts_beyond_any_answer_is_refused(client: httpx.AsyncClient, start: float) -> None:
    fields = {"prompt": "e", "exponential_decay_length_penalty": [start, 1.1]}
    assert await refused(client, fields) == "exponential_decay_length_penalty"


async def test_arguments_of_a_call_may_be_nested_as_deep_as_they_like(client: httpx.AsyncClient) -> None:
    """Python's json reads a few levels more than it can write again: those were a 500."""
    for depth in (100, 300, *range(850, 1000, 3), 5000):
        arguments = '{"a":' * depth + "1" + "}" * depth
        call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "x", "content": "b"},
        ]
        response = await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
        assert response.status_code in (200, 400), (depth, response.text)
