"""Messages as other servers and SDKs leave them in a history, and the paths by which errors name what is wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.served import Served
from server.wire.unknown import IGNORED
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying

CHAT = "/v1/chat/completions"
HELLO = {"role": "user", "content": "hello"}
TEMPLATE = "{% for m in messages %}{{ m.role }}({{ m.reasoning_content }}){{ m.content }};{% endfor %}{# <tool_call> #}"
ADD = {"type": "function", "function": {"name": "add"}}
SUB = {"type": "function", "function": {"name": "sub"}}


async def post(served: Served, message: dict[str, Any], **fields: Any) -> tuple[httpx.Response, str]:
    batcher = FakeBatcher(served, saying(served, "ok"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(batcher)), base_url="http://test") as client:
        response = await client.post(CHAT, json={"messages": [HELLO, message, HELLO], **fields})
    ids = batcher.requests[0].prompt_ids if batcher.requests else ()
    return response, served.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.fixture(scope="module")
def telling() -> Served:
    """A model whose template tells all that it is given."""
    return make_served(4096, TEMPLATE)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"content": None, "refusal": "I cannot."}, "assistant()I cannot.;"),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "assistant()No.;"),
        ({"content": "Well.", "refusal": "No."}, "assistant()Well.\nNo.;"),
        ({"content": "2", "reasoning": "1+1"}, "assistant(1+1)2;"),
        ({"content": "2", "reasoning_content": "1+1"}, "assistant(1+1)2;"),
        ({"content": "2", "reasoning": "1+1", "reasoning_content": "1+1"}, "assistant(1+1)2;"),
    ],
)
async def test_what_an_assistant_refused_or_thought_is_told(telling: Served, message: Any, shown: str) -> None:
    response, prompt = await post(telling, {"role": "assistant", **message})
    assert response.status_code == 200, response.text
    assert shown in prompt


@pytest.mark.parametrize(
    ("message", "ignored"),
    [
        ({"content": "a", "cache_control": {"type": "ephemeral"}}, "messages.cache_control"),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
         "messages.content.cache_control"),
        ({"content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
         "messages.content.prompt_cache_breakpoint"),
        ({"content": "a", "provider_specific_fields": {"x": 1}, "annotations": [{"type": "url_citation"}]},
         "messages.annotations, messages.provider_specific_fields"),
        ({"content": "a", "reasoning_details": [1], "thinking_blocks": [2]},
         "messages.reasoning_details, messages.thinking_blocks"),
        ({"content": None, "tool_calls": [{"id": "1", "provider_specific_fields": {"x": 1},
          "function": {"name": "f", "arguments": "{}", "provider_specific_fields": {"y": 1}}}]},
         "messages.tool_calls.function.provider_specific_fields, messages.tool_calls.provider_specific_fields"),
        ({"content": "a", "annotations": [], "provider_specific_fields": None}, None),
    ],
)  # fmt: skip
async def test_what_other_makers_left_in_a_message_has_no_effect_and_is_listed(
    telling: Served, message: Any, ignored: str | None
) -> None:
    response, _ = await post(telling, {"role": "assistant", **message})
    assert response.status_code == 200, response.text
    assert response.headers.get("X-Ignored-Params") == ignored


async def test_a_schema_may_have_properties_of_those_names(telling: Served) -> None:
    schema = {"type": "object", "properties": {"annotations": {"type": "string"}, "cache_control": {"type": "string"}}}
    tool = {"type": "function", "cache_control": {"x": 1}, "function": {"name": "f", "parameters": schema}}
    response, _ = await post(telling, {"role": "assistant", "content": "a"}, tools=[tool])
    assert response.headers["X-Ignored-Params"] == "tools.cache_control"
    taking = make_served(4096, "{{ tools | tojson if tools }}{# <tool_call> #}")
    _, prompt = await post(taking, {"role": "assistant", "content": "a"}, tools=[tool])
    assert "annotations" in prompt


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"content": [{"type": "text", "text": "a", "foo": 1}]}, "unknown field 'messages[1].content[0].foo'"),
        ({"content": [{"type": "text", "text": "a", "texd": 1}]},
         "unknown field 'messages[1].content[0].texd'; did you mean 'text'?"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text"}]}, "messages[1].content[1].text is required"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         "messages[1].content[0] must be a part of type text or refusal: images, audio and files are not supported"),
        ({"content": 7}, "messages[1].content must be a string or a list of parts of type text"),
        ({"content": "a", "reasoning": "x", "reasoning_content": "y"},
         "messages[1] has reasoning and reasoning_content, which are the same and must not differ"),
        ({"content": "a", "function_call": {"name": "f", "arguments": "{}"}}, "messages[1].function_call must be null"),
        ({"content": None, "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
         "messages[1].tool_calls[0] must be of type function: custom tools are not supported"),
    ],
)  # fmt: skip
async def test_an_error_has_the_path_of_what_is_wrong(telling: Served, message: Any, told: str) -> None:
    response, _ = await post(telling, {"role": "assistant", **message})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == told


async def test_a_refusal_is_the_assistants(telling: Served) -> None:
    response, _ = await post(telling, {"role": "user", "content": None, "refusal": "no"})
    assert response.json()["error"]["message"] == "messages[1] can have a refusal only with role assistant"


async def test_the_older_form_of_tools_is_named_with_the_newer(telling: Served) -> None:
    for field, value, newer in (
        ("functions", [{"name": "f"}], "tools"),
        ("function_call", {"name": "f"}, "tool_choice"),
    ):
        response, _ = await post(telling, HELLO, **{field: value})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, field)
        assert f"it is the older form of {newer}" in error["message"]
    response, _ = await post(telling, HELLO, functions=[], function_call="auto")
    assert response.status_code == 200


def allowing(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def test_only_the_allowed_tools_are_shown_and_may_be_called() -> None:
    taking = make_served(4096, "{{ tools | tojson if tools }}{{ messages[0].content }}{# <tool_call> #}")
    response, prompt = await post(taking, HELLO, tools=[ADD, SUB], tool_choice=allowing("auto", SUB))
    assert response.status_code == 200, response.text
    assert '"sub"' in prompt
    assert '"add"' not in prompt
    assert response.json()["decoding"]["effective"]["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([ADD], allowing("auto", SUB)),
        ([ADD], allowing("auto")),
        ([ADD], allowing("sometimes", ADD)),
        ([ADD], {"type": "allowed_tools"}),
        (None, allowing("auto", ADD)),
        ([{"type": "custom", "custom": {"name": "f"}}], "auto"),
        (7, allowing("auto", ADD)),
    ],
)
async def test_allowed_tools_that_are_none_are_refused(telling: Served, tools: Any, choice: Any) -> None:
    response, _ = await post(telling, HELLO, tools=tools, tool_choice=choice)
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("tool_choice", "tools")


async def test_a_variable_that_the_template_does_not_have_is_named(telling: Served) -> None:
    response, _ = await post(telling, HELLO, chat_template_kwargs={"enable_thinking": False})
    assert "'enable_thinking'" in response.json()["error"]["message"]


async def test_what_is_for_openais_books_is_listed(telling: Served) -> None:
    fields = {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}}
    response, _ = await post(telling, HELLO, **fields)
    assert fields.keys() <= IGNORED
    assert response.headers["X-Ignored-Params"] == "prompt_cache_options, prompt_cache_retention"


@pytest.mark.parametrize("url", [CHAT, "/v1/completions"])
async def test_events_can_be_padded_to_sizes_that_say_little(telling: Served, url: str) -> None:
    body: dict[str, Any] = {"messages": [HELLO]} if url == CHAT else {"prompt": "hello"}
    batcher = FakeBatcher(telling, saying(telling, "the quick brown fox"))
    sizes: dict[bool | None, set[int]] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(batcher)), base_url="http://test") as client:
        for pads in (True, False, None):
            options = {"include_obfuscation": pads, "include_usage": True}
            answer = await client.post(url, json={**body, "stream": True, "stream_options": options})
            assert answer.status_code == 200, answer.text
            events = [event for event in answer.content.split(b"\n\n") if b'"finish_reason"' in event]
            said = [event for event in events if b'"role"' not in event]
            assert all((b"obfuscation" in event) == bool(pads) for event in said)
            sizes[pads] = {(len(event) + 2) % 64 for event in said}
    assert sizes[True] == {0}
    assert len(sizes[False]) > 1
