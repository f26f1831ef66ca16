"""Tools and reasoning in POST /v1/chat/completions over a fake engine: prompt, history, answers, streams, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.served import Served
from server.text.tokenizer import Tokenizer
from server.text.tool_parsers.registry import FORMATS
from tests.server.fake_engine import END, FakeBatcher, byte_tokenizer, make_app, make_served, saying

URL = "/v1/chat/completions"
PARAMETERS = "tools[0].function.parameters"
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD = {"type": "function", "function": {"name": "add"}}


def function(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


NAMED = {"type": "function", "function": {"name": "add"}}
SAID = (
    'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
)
CALLS = [("get_weather", '{"city": "Zürich"}'), ("add", "{}")]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if mood is defined and mood == 'deep' %}<think>\n{% endif %}{% endif %}{# </think> #}"
)


@pytest.fixture(scope="module")
def taking() -> Served:
    """A model whose template takes tools and knows reasoning."""
    return make_served(4096, TEMPLATE)


@pytest.fixture(scope="module")
def told() -> Served:
    """One whose template takes none."""
    return make_served(4096)


@pytest.fixture
def batcher(taking: Served) -> FakeBatcher:
    return FakeBatcher(taking, saying(taking, SAID))


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(URL, json={"messages": HELLO, "stream": True, **fields})
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def gathered(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The message and finish_reason that a stream's choices add up to, as OpenAI's SDKs do it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for delta in (choice["delta"] for choice in choices):
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["calls"])
                assert call["type"] == "function"
                message["calls"].append([call["function"]["name"], ""])
            message["calls"][call["index"]][1] += call["function"]["arguments"]
    return message | {"calls": [tuple(call) for call in message["calls"]], "finish": choices[-1]["finish_reason"]}


def prompt_of(batcher: FakeBatcher) -> str:
    ids = batcher.requests[-1].prompt_ids
    return batcher.model.tokenizer.decode(ids, skip_special_tokens=False)


async def test_calls_are_parsed_out_of_the_answer(client: httpx.AsyncClient) -> None:
    (choice,) = (await ask(client, tools=[WEATHER, ADD]))["choices"]
    calls = choice["message"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == CALLS
    assert choice["message"]["content"] == "I look."
    assert choice["finish_reason"] == "tool_calls"
    assert len({call["id"] for call in calls}) == 2
    assert all(call["type"] == "function" for call in calls)


@pytest.mark.parametrize("per_chunk", [1, 2, 7, 1000])
async def test_a_stream_says_the_same_piece_by_piece(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served, per_chunk: int
) -> None:
    batcher.script = saying(taking, f"<think>\nhm\n</think>\n\n{SAID}", per_chunk=per_chunk)
    message = gathered(await stream(client, tools=[WEATHER, ADD]))
    assert message == {"content": "I look.", "reasoning_content": "hm", "calls": CALLS, "finish": "tool_calls"}


async def test_arguments_are_streamed_before_they_are_complete(client: httpx.AsyncClient) -> None:
    deltas = [choice["delta"] for choice in await stream(client, tools=[WEATHER])]
    pieces = [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert len(pieces) > 5
    assert not any("<" in (delta.get("content") or "") for delta in deltas)


async def test_each_of_several_choices_has_its_own_calls(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served
) -> None:
    batcher.script = saying(taking, SAID, "no call")
    choices = await stream(client, tools=[WEATHER], n=2)
    one, other = (gathered([each for each in choices if each["index"] == index]) for index in (0, 1))
    assert (one["calls"], one["finish"]) == (CALLS, "tool_calls")
    assert (other["calls"], other["content"], other["finish"]) == ([], "no call", "stop")


async def test_calls_without_a_word_have_null_content(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served
) -> None:
    batcher.script = saying(taking, '<tool_call>{"name": "add"}</tool_call>')
    assert (await ask(client, tools=[ADD]))["choices"][0]["message"]["content"] is None


async def test_a_call_that_was_cut_off_ends_with_length(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served
) -> None:
    batcher.script = saying(taking, SAID[:60], end=False)
    (choice,) = (await ask(client, tools=[WEATHER]))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"c')


@pytest.mark.parametrize(
    ("stop", "finish"),
    [("Par", "stop"), ("}</tool_call>", "tool_calls"), ("</tool_call>", "tool_calls"), (END, "tool_calls")],
)
async def test_a_call_that_a_stop_string_cut_off_is_not_to_be_made(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served, stop: str, finish: str
) -> None:
    batcher.script = saying(taking, '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>')
    (choice,) = (await ask(client, tools=[WEATHER], stop=[stop]))["choices"]
    assert choice["finish_reason"] == finish
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    assert (arguments == '{"city": "Paris"}') == (finish == "tool_calls")


async def test_without_tools_nothing_is_parsed(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    for fields in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        (choice,) = (await ask(client, **fields))["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (SAID, "stop")
        assert "tool_calls" not in choice["message"]
        assert "get_weather" not in prompt_of(batcher)


async def test_reasoning_is_split_off(client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served) -> None:
    batcher.script = saying(taking, "<think>\nhm\n</think>\n\nYes.")
    message = (await ask(client))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")
    batcher.script = saying(taking, "Yes.")
    assert "reasoning_content" not in (await ask(client))["choices"][0]["message"]


async def test_a_template_that_opens_the_reasoning_is_noticed(
    client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served
) -> None:
    batcher.script = saying(taking, "hm</think>Yes.")
    deep = {"chat_template_kwargs": {"mood": "deep"}}
    message = (await ask(client, **deep))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")
    assert (await ask(client))["choices"][0]["message"]["content"] == "hm</think>Yes."
    assert gathered(await stream(client, **deep))["reasoning_content"] == "hm"


async def test_a_template_that_takes_tools_gets_them_and_the_calls_of_the_history(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    await ask(client, tools=[WEATHER], messages=history())
    prompt = prompt_of(batcher)
    assert prompt.startswith('[{"type": "function", "function": {"name": "get_weather", "description"')
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>' in prompt
    assert "<|im_start|>tool\nsunny<|im_end|>" in prompt


async def test_a_template_without_tools_is_told_them_in_the_system_message(told: Served) -> None:
    batcher = FakeBatcher(told, saying(told, "sunny"))
    async for client in connected(batcher):
        await ask(client, tools=[WEATHER], messages=[{"role": "developer", "content": "Be brief."}, *history()])
        prompt = prompt_of(batcher)
        assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
        assert '"name": "get_weather"' in prompt
        called = (
            '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
        )
        assert called in prompt
        assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>" in prompt
        await ask(client, tools=[WEATHER])
        assert prompt_of(batcher).startswith("<|im_start|>system\nYou can call functions.")


def history() -> list[dict[str, Any]]:
    """With what SDKs send back: null content, parsed arguments, an index."""
    called = {"name": "get_weather", "arguments": '{"city":"Rome"}', "parsed_arguments": None}
    call = {"id": "call_1", "type": "function", "function": called, "index": 0}
    return [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "parsed": None},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]


async def connected(batcher: FakeBatcher) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(batcher), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_the_last_message_can_be_continued(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once upon "}]
    await ask(client, messages=messages, continue_final_message=True)
    assert prompt_of(batcher).endswith("<|im_start|>assistant\nOnce upon ")
    await ask(client, messages=messages, add_generation_prompt=False)
    assert prompt_of(batcher).endswith("Once upon <|im_end|>\n")


async def test_reasoning_can_be_continued(client: httpx.AsyncClient, batcher: FakeBatcher, taking: Served) -> None:
    batcher.script = saying(taking, " and done.</think>4")
    messages = [*HELLO, {"role": "assistant", "content": "<think>\nI add"}]
    message = (await ask(client, messages=messages, continue_final_message=True))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("and done.", "4")


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, ["start: (", '"<tool_call>" calls', "get_weather", '"add']),
        ({"tool_choice": NAMED}, ['"add', "additionalProperties"]),
        ({"parallel_tool_calls": False}, ["up_to_calls"]),
        ({"tools": [{"type": "function", "function": {"name": "add", "strict": True}}]}, ["up_to_calls"]),
    ],
)
async def test_what_must_be_is_held_to_a_grammar(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: dict[str, Any], grammar: list[str] | None
) -> None:
    await ask(client, **{"tools": [WEATHER, ADD], **fields})
    held = batcher.requests[-1].logits.grammar
    assert (held is None) == (grammar is None)
    for part in grammar or ():
        assert held is not None
        assert part in held.text
    if fields.get("tool_choice") == NAMED:
        assert held is not None
        assert "get_weather" not in held.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "with space"}}]}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            PARAMETERS,
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools"),
        (
            {"tools": [function({"type": "object", "properties": {"a": {"type": "strnig"}}}, strict=True)]},
            PARAMETERS,
        ),
        (
            {"tools": [function({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, strict=True)]},
            PARAMETERS,
        ),
        ({"tools": [function({"type": "object", "description": "x" * 65536})]}, PARAMETERS),
        ({"tools": [{"type": "function", "function": {"name": "f", "schema": {}}}]}, "tools[0].function.schema"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [ADD] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "add"}}, "tool_choice"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
async def test_what_makes_no_sense_is_refused(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param, response.text


async def test_without_a_known_format_tools_are_refused_by_name(taking: Served) -> None:
    batcher = FakeBatcher(replace(taking, tools=None), saying(taking, "x"))
    async for client in connected(batcher):
        response = await client.post(URL, json={"messages": HELLO, "tools": [ADD]})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")
        assert "--tool-parser" in response.json()["error"]["message"]
        await ask(client, tools=[ADD], tool_choice="none")


async def test_tokenize_counts_the_tools_of_a_chat(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, tools=[WEATHER])
    body = {"messages": HELLO, "tools": [WEATHER]}
    assert (await client.post("/tokenize", json=body)).json()["tokens"] == [*batcher.requests[-1].prompt_ids]


async def test_a_marker_that_is_a_special_token_is_seen(taking: Served) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    mistral = replace(taking, tokenizer=Tokenizer(tokenizer, taking.tokenizer.template), tools=FORMATS["mistral"])
    batcher = FakeBatcher(mistral, saying(mistral, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]'))
    async for client in connected(batcher):
        message = gathered(await stream(client, tools=[ADD]))
        assert (message["content"], message["calls"]) == ("", [("add", '{"a": 1}')])
        assert (await ask(client))["choices"][0]["message"]["content"] == ' [{"name": "add", "arguments": {"a": 1}}]'


async def test_the_answer_says_how_tools_were_to_be_called(client: httpx.AsyncClient) -> None:
    for choice in ("required", NAMED):
        effective = (await ask(client, tools=[ADD], tool_choice=choice))["decoding"]["effective"]
        assert effective["tool_choice"] == choice
    effective = (await ask(client, tools=[ADD], parallel_tool_calls=False))["decoding"]["effective"]
    assert (effective["tool_choice"], effective["parallel_tool_calls"]) == ("auto", False)
    assert "tool_choice" not in (await ask(client))["decoding"]["effective"]


UNENFORCEABLE = (
    {"type": "string", "pattern": r"^(?!\.)[a-z.]+@x$"},
    {"type": "string", "pattern": r"(a)\1"},
    {"type": "string", "pattern": "["},
    {"$ref": "#/$defs/none"},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "file:///etc/passwd"},
    {"type": "any"},
    {"type": "integer", "minimum": 2**53 + 1},
)


@pytest.mark.parametrize("inner", UNENFORCEABLE, ids=str)
@pytest.mark.parametrize(
    "choice", ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}], ids=str
)
async def test_a_tool_that_cannot_be_enforced_is_no_reason_to_refuse_the_chat(
    client: httpx.AsyncClient, inner: dict[str, Any], choice: Any
) -> None:
    """Tools of MCP servers and zod's patterns: where nothing is asked to hold, what cannot be held to is left out."""
    tools = [function({"type": "object", "properties": {"a": inner, "b": {"type": "string"}}})]
    response = await client.post(URL, json={"messages": HELLO, "tools": tools, "tool_choice": choice, "max_tokens": 2})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("inner", UNENFORCEABLE, ids=str)
async def test_a_strict_tool_that_cannot_be_enforced_is_refused_by_keyword_and_place(
    client: httpx.AsyncClient, inner: dict[str, Any]
) -> None:
    tools = [function({"type": "object", "properties": {"a": {"type": "array", "items": inner}}}, strict=True)]
    response = await client.post(URL, json={"messages": HELLO, "tools": tools})
    assert response.status_code == 400
    error = response.json()["error"]
    keyword = next(k for k in ("pattern", "$ref", "minimum", "type") if k in inner)
    assert error["param"] == PARAMETERS
    assert f"'{keyword}' at properties.a.items" in error["message"]
