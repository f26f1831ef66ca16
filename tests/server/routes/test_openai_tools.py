"""The OpenAI SDK's helpers for tools, over a socket, against an engine that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import openai
import pydantic
import pytest

from server.served import Served
from tests.server.fake_engine import FakeBatcher, make_served, saying
from tests.server.routes.test_openai_client import running

CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nOne moment.\n{CALL}"
QUESTION = [{"role": "user", "content": "Weather?"}]


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


TOOLS = [openai.pydantic_function_tool(Weather)]


@pytest.fixture(scope="module")
def thinking() -> Served:
    return make_served(4096, "{% for m in messages %}{{ m.content }}{{ tools }}{% endfor %}<tool_call>{# </think> #}")


@pytest.fixture
async def sdk(thinking: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(FakeBatcher(thinking, saying(thinking, SAID, per_chunk=3))) as url,
        openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        yield client


async def test_parsed_arguments_are_the_pydantic_class(sdk: openai.AsyncOpenAI) -> None:
    chat = await sdk.chat.completions.parse(model="tiny", messages=QUESTION, tools=TOOLS)
    message = chat.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Zürich")
    assert message.content == "One moment."
    assert message.model_extra == {"reasoning_content": "hm"}
    assert chat.choices[0].finish_reason == "tool_calls"


async def test_the_stream_helper_gathers_what_the_plain_answer_says(sdk: openai.AsyncOpenAI) -> None:
    plain = await sdk.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS)
    async with sdk.chat.completions.stream(model="tiny", messages=QUESTION, tools=TOOLS) as stream:
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or ()
    (said,) = plain.choices[0].message.tool_calls or ()
    assert said.type == "function"
    assert (call.function.name, call.function.arguments) == (said.function.name, said.function.arguments)
    assert call.function.parsed_arguments == Weather(city="Zürich")
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert final.choices[0].finish_reason == "tool_calls"
    assert events.count("tool_calls.function.arguments.delta") > 2
    assert events.count("tool_calls.function.arguments.done") == 1


async def test_a_message_of_the_sdk_can_be_sent_back(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(model="tiny", messages=QUESTION, tools=TOOLS) as stream:
        message = (await stream.get_final_completion()).choices[0].message
    (call,) = message.tool_calls or ()
    result = {"role": "tool", "tool_call_id": call.id, "content": json.dumps({"sky": "blue"})}
    for sent in (message, message.model_dump()):
        again = await sdk.chat.completions.create(model="tiny", messages=[*QUESTION, sent, result], tools=TOOLS)  # type: ignore[list-item]
        assert again.choices[0].message.tool_calls
