"""Stop strings that are special tokens, or hold one: they end the text whether it shows such tokens or hides them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.served import Served
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer
from tests.server.fake_engine import TEMPLATE, FakeBatcher, byte_tokenizer, make_app, saying

MARK = "<|im_start|>"
SAID = f"Hello {MARK}\nmore of it"
HOME = "the dog"


async def said(client: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    body = {"prompt": HOME, "max_tokens": 99} | fields
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["text"], choice["finish_reason"]


@pytest.mark.parametrize("per_chunk", [1, 3, 99])
@pytest.mark.parametrize(
    ("fields", "text"),
    [  # special tokens shown, then hidden
        ({"stop": [MARK], "skip_special_tokens": False}, "Hello "),
        ({"stop": [f"{MARK}\nmo"], "skip_special_tokens": False}, "Hello "),
        ({"stop": [f"lo {MARK}"], "skip_special_tokens": False}, "Hel"),
        ({"stop": ["im_st"], "skip_special_tokens": False}, "Hello <|"),
        ({"stop": [MARK], "skip_special_tokens": False, "include_stop_str_in_output": True}, f"Hello {MARK}"),
        ({"stop": [MARK]}, "Hello "),
        ({"stop": [f"{MARK}\nmo"]}, "Hello "),
        ({"stop": [f"lo {MARK}"]}, "Hel"),
        ({"stop": [f"lo {MARK}\nm"]}, "Hel"),
        ({"stop": [f"lo {MARK}\nm", "it"]}, "Hel"),
        ({"stop": ["lo \nmo"]}, "Hel"),
        ({"stop": [f"lo {MARK}"], "include_stop_str_in_output": True}, "Hello "),
    ],
)
async def test_a_stop_acts_on_the_shown_text_and_on_special_tokens_by_name(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: dict[str, Any], text: str, per_chunk: int
) -> None:
    batcher.script = saying(batcher.model, SAID, per_chunk=per_chunk)
    assert await said(client, **fields) == (text, "stop")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop": ["im_st", "absent"]}, "Hello \nmore of it"),
        ({"stop": ["lo \nmo"], "skip_special_tokens": False}, SAID),
        ({"stop": [f"o{MARK}"]}, "Hello \nmore of it"),
    ],
)
async def test_nothing_else_stops_at_them(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served, fields: dict[str, Any], text: str
) -> None:
    batcher.script = saying(served, SAID)
    assert await said(client, **fields) == (text, "stop")


async def test_a_stop_that_the_model_spells_out_is_one_too(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "Hello <|im_st", per_chunk=2)
    assert await said(client, stop=["<|im_st"]) == ("Hello ", "stop")


async def test_a_stream_and_a_chat_stop_there_too(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, SAID)
    body = {"messages": [{"role": "user", "content": "x"}], "stop": [f"lo {MARK}\nm"], "stream": True}
    answer = await client.post("/v1/chat/completions", json=body)
    assert '"content":"l"' in answer.text or '"content":"Hel"' in answer.text
    assert "more" not in answer.text
    assert '"content":"o' not in answer.text


THINKING = "{% for m in messages %}{{ m.content }}{% endfor %}<think></think>"


async def test_a_marker_of_reasoning_that_is_special_stops_too(served: Served) -> None:
    tokens = byte_tokenizer()
    tokens.add_special_tokens(["<think>", "</think>"])
    tokenizer = Tokenizer(tokens, ChatTemplate(THINKING, {}))
    thinking = replace(served, tokenizer=tokenizer, has_reasoning=True, vocab_size=tokenizer.vocabulary.size)
    app = make_app(FakeBatcher(thinking, saying(thinking, "<think>I see</think>four")))
    body = {"messages": [{"role": "user", "content": "x"}], "stop": ["</think>"]}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("", "I see")


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("completions", "prompt", "a<pad>b"),
        ("completions", "bad_words", ["a<pad>b"]),
        ("chat/completions", "messages", [{"role": "user", "content": "a<pad>b"}]),
    ],
)
async def test_a_text_with_a_token_that_the_model_lacks_is_refused(
    served: Served, path: str, field: str, value: object
) -> None:
    """Fine-tuners add a padding token and leave the model's matrices as they were."""
    tokens = byte_tokenizer()
    num_ids = tokens.get_vocab_size()
    tokens.add_special_tokens(["<pad>"])
    tokenizer = Tokenizer(tokens, ChatTemplate(TEMPLATE, {})).within(num_ids)
    lacking = replace(served, tokenizer=tokenizer, vocab_size=num_ids)
    app = make_app(FakeBatcher(lacking, saying(lacking, "Hello world")))
    body = {"prompt": "x"} if path == "completions" else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.post(f"/v1/{path}", json=body | {field: value})
    assert answer.status_code == 400
    assert "<pad>" in answer.json()["error"]["message"]
