"""Other servers' names for our fields: read as ours where they mean the same, else answered with what to send."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.wire.foreign_names import ALIASES, HINTS
from server.wire.requests import ChatRequest, CompletionRequest
from server.wire.responses import ResponseRequest
from tests.server.fake_engine import FakeBatcher

URL = "/v1/completions"
CHAT = "/v1/chat/completions"
OURS = CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys() | ResponseRequest.model_fields.keys()

# a request in another server's names, and the same in ours
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_new_tokens": 3}, {"max_tokens": 3}),
    ({"n_predict": 3}, {"max_tokens": 3}),
    ({"num_predict": 3}, {"max_tokens": 3}),
    ({"max_tokens_to_sample": 3}, {"max_tokens": 3}),
    ({"stop_strings": ["lo", "x"]}, {"stop": ["lo", "x"]}),
    ({"stop_sequences": "lo"}, {"stop": "lo"}),
    ({"eos_token_id": 7}, {"stop_token_ids": [7], "ignore_eos": True}),
    ({"eos_token_id": [7, 8]}, {"stop_token_ids": [7, 8], "ignore_eos": True}),
    ({"guidance_scale": 1.5, "negative_prompt_ids": [[5, 6]]}, {"guidance_scale": 1.5, "negative_prompt": [5, 6]}),
    ({"guidance_scale": 1.5, "negative_prompt_ids": [5, 6]}, {"guidance_scale": 1.5, "negative_prompt": [5, 6]}),
    ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"repeat_penalty": 1.2, "repeat_last_n": 9}, {"repetition_penalty": 1.2, "repetition_penalty_window": 9}),
    ({"repeat_penalty": 1.2, "repeat_last_n": -1}, {"repetition_penalty": 1.2}),
    ({"random_seed": 5}, {"seed": 5}),
    ({"guided_json": '{"type": "integer"}'}, {"structured": {"json": {"type": "integer"}}}),
    ({"guided_json": {"type": "integer"}}, {"structured": {"json": {"type": "integer"}}}),
    ({"guided_regex": "a+"}, {"structured": {"regex": "a+"}}),
    ({"guided_choice": ["a", "b"]}, {"structured": {"choice": ["a", "b"]}}),
    ({"guided_grammar": 'start: "a"'}, {"structured": {"grammar": 'start: "a"'}}),
    ({"structured_outputs": {"regex": "a+", "json": None}}, {"structured": {"regex": "a+"}}),
    ({"structured_outputs": {"json_object": True}}, {"structured": {"json": {"type": "object"}}}),
    ({"max_new_tokens": None, "stop_sequences": None}, {}),
]  # fmt: skip


async def effective(client: httpx.AsyncClient, url: str, fields: dict[str, Any]) -> Any:
    needed = {"prompt": "a"} if url == URL else {"messages": [{"role": "user", "content": "a"}]}
    response = await client.post(url, json={**needed, "seed": 5, **fields})
    assert response.status_code == 200, response.text
    return response.json()["decoding"]


@pytest.mark.parametrize("url", [URL, CHAT])
@pytest.mark.parametrize(("theirs", "ours"), SAME, ids=[str(theirs) for theirs, _ in SAME])
async def test_an_alias_asks_for_what_our_name_asks_for(
    client: httpx.AsyncClient, batcher: FakeBatcher, url: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    assert await effective(client, url, theirs) == await effective(client, url, ours)
    assert batcher.requests[0] == batcher.requests[1]


async def test_every_alias_is_tried_above() -> None:
    assert {name for theirs, _ in SAME for name in theirs} >= ALIASES.keys()


async def test_a_response_takes_the_length_by_every_name(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    assert (await client.post("/v1/responses", json={"input": "a", "max_new_tokens": 3})).status_code == 200
    assert batcher.requests[0].stopping.max_tokens == 3


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({"max_new_tokens": 3, "max_tokens": 4}, "max_tokens"),
        ({"n_predict": 3, "max_new_tokens": 4}, "max_tokens"),
        ({"stop_sequences": ["a"], "stop": ["b"]}, "stop"),
        ({"eos_token_id": 7, "stop_token_ids": [8]}, "stop_token_ids"),
        ({"eos_token_id": 7, "ignore_eos": False}, "ignore_eos"),
        ({"guided_regex": "a", "structured": {"regex": "b"}}, "structured.regex"),
        ({"structured_outputs": {"regex": "a"}, "structured": {"regex": "b"}}, "structured"),
    ],
)
async def test_two_names_of_one_field_must_not_differ(
    client: httpx.AsyncClient, fields: dict[str, Any], ours: str
) -> None:
    error = (await client.post(URL, json={"prompt": "a", **fields})).json()["error"]
    assert error["param"] in fields
    assert error["message"] == f"{error['param']} and {ours} are the same and must not differ"


async def test_two_names_that_agree_are_one(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    assert (await effective(client, URL, {"max_new_tokens": 3, "max_tokens": 3}))["effective"]["max_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_new_tokens": "3"}, "max_new_tokens", "max_new_tokens must be a valid integer"),
        ({"n_predict": -1}, "n_predict", "n_predict must be greater than or equal to 0"),
        ({"stop_sequences": 7}, "stop_sequences", "stop_sequences must be a string or a list of strings"),
        ({"repeat_last_n": 0}, "repeat_last_n", "repeat_last_n 0 is no penalty: leave out both it and repeat_penalty"),
        ({"guided_json": "{"}, "guided_json", "guided_json must be an object"),
        ({"guided_regex": 7}, "guided_regex", "guided_regex must be a valid string"),
        ({"guided_regex": "a", "structured": 7}, "structured", "structured must be an object"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag",
         "unknown field 'structured_outputs.structural_tag'"),
        ({"structured_outputs": {"regex": 7}}, "structured_outputs.regex",
         "structured_outputs.regex must be a valid string"),
    ],
)  # fmt: skip
async def test_a_bad_value_is_told_by_the_name_that_it_was_sent_as(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str
) -> None:
    error = (await client.post(URL, json={"prompt": "a", **fields})).json()["error"]
    assert (error["param"], error["message"]) == (param, message)


@pytest.mark.parametrize("name", sorted(HINTS))
async def test_a_foreign_field_is_answered_with_what_to_send(client: httpx.AsyncClient, name: str) -> None:
    url = CHAT if name in CompletionRequest.model_fields else URL
    needed = {"prompt": "a"} if url == URL else {"messages": [{"role": "user", "content": "a"}]}
    error = (await client.post(url, json={**needed, name: 1})).json()["error"]
    assert error["message"] == f"unknown field '{name}'; {HINTS[name]}"
    assert error["param"] == name


def test_no_name_of_ours_is_foreign() -> None:
    assert not ALIASES.keys() & (OURS | HINTS.keys())


async def test_only_a_name_nobody_is_known_to_have_is_answered_by_its_letters(client: httpx.AsyncClient) -> None:
    told = {
        name: (await client.post(URL, json={"prompt": "a", name: 1})).json()["error"]["message"]
        for name in ("max_length", "assistant_model", "suppress_tokens", "temprature")
    }
    assert "counts the prompt's tokens too; max_tokens" in told["max_length"]
    assert "--draft-model" in told["assistant_model"]
    assert "pause_tokens" not in told["suppress_tokens"]
    assert told["temprature"] == "unknown field 'temprature'; did you mean 'temperature'?"


async def test_how_generate_would_return_has_no_effect_here(client: httpx.AsyncClient) -> None:
    fields = {"use_cache": True, "output_scores": True, "return_dict_in_generate": True}
    answer = await client.post(URL, json={"prompt": "a", **fields})
    assert answer.headers["X-Ignored-Params"] == "output_scores, return_dict_in_generate, use_cache"
