"""Structured output over HTTP on the real model: the SDK's .parse(), schemas in several strategies, streams."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.conformance.test_openai_sdk import MODEL
from tests.running_server import RunningServer

pytestmark = pytest.mark.slow

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 16},
        "people": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["old", "big", "green"]}, "maxItems": 2},
    },
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 2, "seed": 5},
    "beam": {"num_beams": 4},
    "best_of": {"best_of": 3, "seed": 7},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "low", "temperature": 0},
    "guided": {"guidance_scale": 1.5, "temperature": 0},
    "prompt_lookup": {"prompt_lookup_num_tokens": 4, "temperature": 0},
}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=130)
    mood: Literal["happy", "sad"]


def complete(server: RunningServer, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "A city as JSON:", "max_tokens": 80, **fields}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_sdk_parses_into_a_pydantic_class(smol_server: RunningServer) -> None:
    sdk = openai.OpenAI(
        base_url=f"{smol_server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    )
    messages: Any = [{"role": "user", "content": "Ann is 31 and glad. Describe her."}]
    chat = sdk.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Person, temperature=0, max_tokens=80
    )
    person = chat.choices[0].message.parsed
    assert isinstance(person, Person)
    assert chat.choices[0].finish_reason == "stop"
    with sdk.chat.completions.stream(
        model=MODEL, messages=messages, response_format=Person, temperature=0, max_tokens=80
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == person


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_meets_its_schema(smol_server: RunningServer, way: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    (choice,) = complete(smol_server, response_format=form, **WAYS[way])["choices"]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["text"]), SCHEMA)


def test_the_other_forms_are_kept(smol_server: RunningServer) -> None:
    for structured, pattern in (
        ({"choice": ["Paris", "Rome"]}, "Paris|Rome"),
        ({"regex": "[A-Z][a-z]{2,9} \\d{4}"}, "[A-Z][a-z]{2,9} \\d{4}"),
        ({"grammar": 'start: item ("," item){1,2}\nitem: /[a-z]{1,6}/'}, "[a-z]{1,6}(,[a-z]{1,6}){1,2}"),
    ):
        answer = complete(smol_server, structured=structured, n=3, seed=1)
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop"
            assert re.fullmatch(pattern, choice["text"]), choice["text"]


def test_json_mode_gives_an_object_or_says_that_it_was_cut(smol_server: RunningServer) -> None:
    answer = complete(smol_server, response_format={"type": "json_object"}, temperature=0, max_tokens=60)
    (choice,) = answer["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)
    else:
        assert choice["finish_reason"] == "length"
        assert choice["text"].startswith("{")
