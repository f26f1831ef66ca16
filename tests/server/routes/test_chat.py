"""POST /v1/chat/completions over a fake engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.served import Served
from tests.server.fake_engine import FakeBatcher, logprob_of, saying

URL = "/v1/chat/completions"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HELLO = [{"role": "user", "content": "hello"}]


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_answer_is_a_message_of_the_assistant(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    answer = await ask(client, seed=1)
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"content": "Hello world", "role": "assistant", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "decoding": {"score": -1.5},
        }
    ]
    assert batcher.asked == [("chat", 1)]


async def test_the_prompt_is_what_the_template_makes_of_the_messages(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await ask(client, messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}])
    text = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert served.tokenizer.decode(batcher.requests[0].prompt_ids, skip_special_tokens=False) == text


async def test_an_answer_can_be_sent_back_as_history(client: httpx.AsyncClient) -> None:
    message = (await ask(client))["choices"][0]["message"]
    history = [*HELLO, {**message, "tool_calls": None, "annotations": [], "audio": None, "function_call": None}, *HELLO]
    await ask(client, messages=history)


async def test_max_tokens_defaults_to_the_rest_of_the_context(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client)
    await ask(client, max_tokens=5)
    await ask(client, max_completion_tokens=6)
    limits = [request.stopping.max_tokens for request in batcher.requests]
    assert limits == [256 - len(batcher.requests[0].prompt_ids), 5, 6]


async def test_logprobs_name_each_token_and_its_bytes(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "ü")
    answer = await ask(client, logprobs=True, top_logprobs=1)
    content = answer["choices"][0]["logprobs"]["content"]
    first = served.tokenizer.encode("ü")[0]
    assert content[0] == {
        "token": "bytes:\\xc3",
        "logprob": logprob_of(first),
        "bytes": [0xC3],
        "top_logprobs": [
            {
                "token": served.tokenizer.vocabulary.name(first + 1),
                "logprob": logprob_of(first + 1),
                "bytes": list(served.tokenizer.vocabulary.bytes_of(first + 1)),
            }
        ],
    }
    assert batcher.requests[0].logprobs.output == 1


async def test_prompt_logprobs_stand_beside_the_choices(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    scored = (await ask(client, prompt_logprobs=0))["prompt_logprobs"]
    assert scored[0] is None
    assert len(scored) == len(batcher.requests[0].prompt_ids)


async def test_several_choices_each_say_their_own(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "one", "two", "three")
    choices = (await ask(client, n=3))["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (0, "one"),
        (1, "two"),
        (2, "three"),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"echo": True}, "echo"),
    ],
)
async def test_what_makes_no_sense_is_refused(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_template_says_in_its_own_words_why_it_refuses(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"messages": [{"role": "assistant", "content": "x"}, *HELLO]})
    assert response.json()["error"]["message"].endswith("No monologues here.")
