"""A tool loop of the OpenAI SDK with the real model: it must call, is told the result, and answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.running_server import RunningServer

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "kelvin"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}
CLOCK: Any = {"type": "function", "function": {"name": "now", "description": "The time."}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def sdk(smol_server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )


def assert_is_weather(arguments: str) -> None:
    value = json.loads(arguments)
    assert set(value) == {"city", "unit"}
    assert len(value["city"]) <= 20
    assert value["unit"] in {"celsius", "kelvin"}


def test_a_tool_loop_ends_in_an_answer(sdk: openai.OpenAI) -> None:
    messages: list[Any] = [*QUESTION]
    with sdk.chat.completions.stream(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False,
        temperature=0, max_tokens=64,
    ) as stream:  # fmt: skip
        choice = stream.get_final_completion().choices[0]
    (call,) = choice.message.tool_calls or ()
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert_is_weather(call.function.arguments)
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25 degrees"}]
    answer = sdk.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=32
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    "strategy", [{"temperature": 2, "n": 2, "seed": 3}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}]
)
def test_a_named_function_is_called_by_every_strategy(sdk: openai.OpenAI, strategy: dict[str, Any]) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[WEATHER, CLOCK], tool_choice=NAMED, max_tokens=64, extra_body=strategy
    )
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, choice.finish_reason) == ("get_weather", "tool_calls")
        assert_is_weather(call.function.arguments)
