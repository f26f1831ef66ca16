"""Tools with templates of all kinds: those that have one for tools, and those that refuse what others take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from server.served import Served
from server.text.chat_template import ChatTemplate
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying

URL = "/v1/chat/completions"
HELLO = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
MUST_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + MUST_ALTERNATE
)
WITH_SYSTEM = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}</system>"
    "{% set messages = messages[1:] %}{% endif %}" + MUST_ALTERNATE
)
DEAF = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"  # to the system
ONE_CALL = (
    "{{ tools | tojson if tools }}{% for m in messages %}{% if (m.tool_calls or []) | length > 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}<{{ c.function.arguments.a }}>{% endfor %}"
    "{% endfor %}{# <tool_call> #}"
)
SHORT_IDS = (
    "{{ tools | tojson if tools }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('Tool call IDs should be 9 long!') }}{% endif %}<{{ c.id }}>"
    "{% endfor %}{% if m.tool_call_id %}<{{ m.tool_call_id }}>{% endif %}{% endfor %}{# <tool_call> #}"
)


def call(number: int) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": "add", "arguments": f'{{"a": {number}}}'}}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": f"sum {number}"}


AT_ONCE = [
    HELLO,
    {"role": "assistant", "content": "I add.", "tool_calls": [call(1), call(2)]},
    result(1),
    result(2),
    {"role": "user", "content": "and?"},
]


@asynccontextmanager
async def connected(served: Served) -> AsyncIterator[tuple[httpx.AsyncClient, FakeBatcher]]:
    batcher = FakeBatcher(served, saying(served, "ok"))
    transport = httpx.ASGITransport(make_app(batcher), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client, batcher


async def prompt_of(served: Served, messages: list[dict[str, Any]], **fields: Any) -> str:
    async with connected(served) as (client, batcher):
        response = await client.post(URL, json={"messages": messages, **fields})
        assert response.status_code == 200, response.text
        return served.tokenizer.decode(batcher.requests[0].prompt_ids, skip_special_tokens=False)


async def tools_in(served: Served) -> Any:
    async with connected(served) as (client, _):
        return (await client.get("/v1/models/tiny")).json()["supports"]["tools_in"]


async def test_without_a_system_role_the_first_user_message_tells_of_the_tools() -> None:
    served = make_served(4096, NO_SYSTEM)
    prompt = await prompt_of(served, [{"role": "system", "content": "Be brief."}, HELLO], tools=[TOOL])
    assert prompt.startswith("<start_of_turn>user\nBe brief.\n\nYou can call functions.")
    assert '"name": "add"' in prompt
    assert prompt.endswith("\n\nhello<end_of_turn>\n<start_of_turn>model\n")
    assert (await prompt_of(served, [HELLO], tools=[TOOL])).startswith("<start_of_turn>user\nYou can call functions.")
    assert await tools_in(served) == "first_user_message"


async def test_a_template_that_drops_what_the_system_says_is_told_by_the_user() -> None:
    served = make_served(4096, DEAF)
    assert (await prompt_of(served, [HELLO], tools=[TOOL])).startswith("[user]You can call functions.")
    assert await tools_in(served) == "first_user_message"


async def test_results_of_calls_at_once_are_one_turn_where_turns_must_alternate() -> None:
    expected = (
        "<start_of_turn>user\n<tool_response>\nsum 1\n</tool_response>\n<tool_response>\nsum 2\n</tool_response>"
        "\n\nand?<end_of_turn>\n<start_of_turn>model\n"
    )
    for template in (NO_SYSTEM, WITH_SYSTEM):
        assert (await prompt_of(make_served(4096, template), AT_ONCE, tools=[TOOL])).endswith(expected)
        assert (await prompt_of(make_served(4096, template), AT_ONCE)).endswith(expected)
    prompt = await prompt_of(make_served(4096, WITH_SYSTEM), AT_ONCE, tools=[TOOL])
    assert prompt.startswith("<system>You can call functions.")
    assert await tools_in(make_served(4096, WITH_SYSTEM)) == "system_message"


async def test_what_the_assistant_says_in_two_turns_is_merged_beside_calls() -> None:
    again = [*AT_ONCE[:4], {"role": "assistant", "content": "So."}, {"role": "assistant", "content": "Done."}]
    prompt = await prompt_of(make_served(4096, NO_SYSTEM), [*again, HELLO], tools=[TOOL])
    assert "<start_of_turn>model\nSo.\n\nDone.<end_of_turn>" in prompt


async def test_what_a_template_takes_stays_as_it_is() -> None:
    served = make_served(4096)
    prompt = await prompt_of(served, AT_ONCE, tools=[TOOL])
    assert prompt.count("<|im_start|>user\n<tool_response>") == 2
    assert await tools_in(served) == "system_message"


async def test_a_refusal_without_tools_is_the_templates_own() -> None:
    async with connected(make_served(4096, NO_SYSTEM)) as (client, _):
        response = await client.post(URL, json={"messages": [{"role": "system", "content": "a"}, HELLO]})
        assert response.status_code == 400
        assert response.json()["error"]["message"].endswith("System role not supported")


async def test_calls_at_once_are_told_one_by_one_to_a_template_that_takes_one() -> None:
    prompt = await prompt_of(make_served(4096, ONE_CALL), AT_ONCE, tools=[TOOL])
    assert prompt.endswith("[user]hello[assistant]I add.<1>[tool]sum 1[assistant]<2>[tool]sum 2[user]and?")


async def test_ids_are_shortened_for_a_template_that_wants_short_ones() -> None:
    prompt = await prompt_of(make_served(4096, SHORT_IDS), AT_ONCE, tools=[TOOL])
    called, answered = prompt.split("<")[1:3], prompt.split("<")[3:]
    assert called == answered
    assert len(set(called)) == 2


NAMED = {
    "tool_use": "{% for t in tools %}T:{{ t.function.name }};{% endfor %}{{ messages[0].content }}<tool_call>",
    "rag": "{% for d in documents or [] %}D:{{ d.text }};{% endfor %}{{ messages[0].content }}",
}


def named(default: str = "plain {{ messages[0].content }}") -> Served:
    served = make_served(4096)
    template = ChatTemplate(default, {}, NAMED | {"other": "{% broken"})
    served.tokenizer.template = template
    return served


async def test_the_template_for_tools_is_rendered_as_soon_as_there_are_tools() -> None:
    assert await prompt_of(named(), [HELLO], tools=[TOOL]) == "T:add;hello<tool_call>"
    assert await prompt_of(named(), [HELLO], tools=[TOOL], tool_choice="none") == "plain hello"
    assert await prompt_of(named(), [HELLO]) == "plain hello"
    assert await tools_in(named()) == "chat_template"


async def test_the_template_for_documents_is_rendered_where_they_are_given() -> None:
    documents = [{"title": "t", "text": "the sea"}]
    assert await prompt_of(named(), [HELLO], documents=documents) == "D:the sea;hello"
    own = make_served(4096, "{% for d in documents or [] %}{{ d.title }}{% endfor %}{{ messages[0].content }}")
    assert await prompt_of(own, [HELLO], documents=documents) == "thello"


async def test_documents_that_no_template_shows_are_refused() -> None:
    for fields in ({}, {"tools": [TOOL]}):
        async with connected(make_served(4096)) as (client, _):
            response = await client.post(URL, json={"messages": [HELLO], "documents": [{"text": "a"}], **fields})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "documents")
