"""What is refused, with which status, and that no answer shows the input. One table a kind of mistake."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.errors import ApiError
from server.served import Served
from server.settings.limits import Limits
from server.wire.unknown import LATER_IN_CHAT
from tests.server.fake_engine import FakeBatcher, make_app, saying

URL = "/v1/completions"


def strict(response: httpx.Response) -> dict[str, Any]:
    """The error object, from JSON that is JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    body = json.loads(response.content.decode("utf-8"), parse_constant=refuse)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    return body["error"]


async def refused(client: httpx.AsyncClient, fields: dict[str, Any], url: str = URL) -> dict[str, Any]:
    response = await client.post(url, json={"prompt": "a", **fields})
    assert response.status_code == 400, response.text
    error = strict(response)
    assert error["type"] == "invalid_request_error"
    return error


BAD_BODIES = [
    b"", b"{", b"null", b"[]", b'"x"', b"7", b'{"prompt":"a"} x', b"[" * 100_000, b'{"prompt":' * 5000,
    b'{"prompt":"a","temperature":NaN}', b'{"prompt":"a","temperature":Infinity}',
    b'{"prompt":"a","temperature":-Infinity}',
    b'{"prompt":"a","temperature":1e400}', b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    b'{"prompt":"a","seed":' + b"9" * 400 + b"}", b'{"prompt":"a","temperature":' + b"1" * 400 + b"}",
    b'{"prompt":"a","n":1,"n":2}', b'{"prompt":"a","logit_bias":{"1":1,"1":2}}', b'{"prompt":"\\ud800"}',
    b'{"prompt":"\xff"}', b'{"prompt":"\xed\xa0\x80"}',
    b'\xef\xbb\xbf{"prompt":"a"}', '{"prompt":"a"}'.encode("utf-16"),
    b'{"prompt":"a","logit_bias":{"1":1e999}}', b'{"prompt":"a\x01"}',
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_body_that_is_no_json_object_of_ours_is_a_400(
    client: httpx.AsyncClient, batcher: FakeBatcher, body: bytes
) -> None:
    response = await client.post(URL, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    strict(response)
    assert batcher.requests == []


BAD_FIELDS: list[dict[str, Any]] = [
    {"prompt": v} for v in (None, 7, True, {}, [], "", [""], [[]], [1, "a"], ["a", 1], [True], [1.0], [-1],
                            [[1], ["a"]], [2**70], [[[1]]], [1, 10**6], [[1], []], ["a", ""])
] + [
    {"max_tokens": v} for v in (-1, "7", True, 2.0, 2**70, [1])
] + [
    {"temperature": v} for v in (-0.1, 10.1, 100.1, "1", True, [], {})
] + [
    {"n": v} for v in (0, -1, 65, 2**63, True, "2", 1.0)
] + [
    {"best_of": 0}, {"best_of": 65}, {"n": 3, "best_of": 2}, {"best_of_rank": "mean"},
    {"best_of": 2, "best_of_rank": "x"},
    {"seed": -(2**63) - 1}, {"seed": 2**64}, {"seed": 1.5}, {"seed": "1"},
    {"top_p": 1.01}, {"top_p": -0.01}, {"min_p": 2}, {"top_k": -2}, {"top_k": 2**31}, {"top_k": 1.0},
    {"presence_penalty": 2.5}, {"frequency_penalty": -2.5}, {"repetition_penalty": 0}, {"repetition_penalty": -1},
    {"logprobs": 21}, {"logprobs": True}, {"logprobs": -1}, {"prompt_logprobs": 21}, {"logprobs_mode": "x"},
    {"stop": ""}, {"stop": ["a", ""]}, {"stop": ["a"] * 17}, {"stop": "a" * 257}, {"stop": 5}, {"stop": [5]},
    {"logit_bias": {"-1": 1}}, {"logit_bias": {"01": 1}}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": 101}},
    {"logit_bias": {"1": "1"}}, {"logit_bias": {"1": True}}, {"logit_bias": {"100000": 1}}, {"logit_bias": [1]},
    {"logit_bias": {"1\n": 1}}, {"logit_bias": {"١": 1}}, {"logit_bias": {"9999999999": 1}},
    {"logit_bias": {str(i): 1 for i in range(1025)}},
    {"allowed_token_ids": []}, {"allowed_token_ids": [-1]}, {"allowed_token_ids": [10**6]},
    {"allowed_token_ids": [1.0]},
    {"stop_token_ids": [-1]}, {"stop_token_ids": [10**6]}, {"stop_token_ids": [True]},
    {"min_tokens": 17}, {"min_tokens": -1}, {"min_tokens": 1, "min_new_tokens": 2}, {"max_tokens": 2, "min_tokens": 3},
    {"stream": "yes"}, {"stream": 1}, {"stream_options": {}}, {"stream": True, "stream_options": {"x": 1}},
    {"stream": True, "stream_options": []}, {"echo": 1}, {"ignore_eos": "no"}, {"sampler_order": "llama"},
    {"timeout": 0}, {"timeout": -1}, {"timeout": "1"}, {"priority": 1.5}, {"cache_salt": 5}, {"cache_salt": "x" * 257},
    {"timeout": 5e-324}, {"model": 5}, {"suffix": "x"}, {"prompt": [1] * 257}, {"prompt": [1] * 256},
    {"prompt": ["a"] * 257}, {"prompt": ["a"] * 5, "n": 64}, {"priority": 1}, {"priority": -3},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=lambda fields: str(fields)[:50])
async def test_a_bad_value_is_a_400_that_names_its_field(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: dict[str, Any]
) -> None:
    error = await refused(client, fields)
    assert error["param"].partition(".")[0] in fields
    assert error["param"] in error["message"] or error["code"] == "context_length_exceeded"
    assert batcher.requests == []
    assert batcher.reserved == 0


IN_JSON = [
    ("/v1/chat/completions", {"messages": []}, "messages must not be empty"),
    ("/v1/chat/completions", {"messages": {}}, "messages must be a list"),
    ("/v1/chat/completions", {"messages": [7]}, "messages[0] must be an object"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "audio": 1}]},
     "messages[0].audio must be null"),
    (URL, {"prompt": "a", "edt": 1}, "edt must be an object"),
    (URL, {"prompt": "a", "structured": {"json": "{}"}}, "structured.json must be an object"),
    ("/tokenize", {"prompt": ["a"]}, "prompt must be a string"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "fields", "message"), IN_JSON)
async def test_a_message_speaks_of_json_and_of_what_that_route_takes(
    client: httpx.AsyncClient, url: str, fields: dict[str, Any], message: str
) -> None:
    response = await client.post(url, json=fields)
    assert (response.status_code, strict(response)["message"]) == (400, message)


async def test_no_error_shows_the_input(client: httpx.AsyncClient) -> None:
    secret = "s3cr3t"
    for fields in (
        {"temperature": secret},
        {"stop": {secret: 1}},
        {"logit_bias": {secret: 1}},
        {"prompt": {secret: 1}},
    ):
        assert secret not in json.dumps(await refused(client, fields))
    response = await client.post(URL, json={"prompt": "a", "model": secret})
    assert response.status_code == 404
    assert secret not in response.text


@pytest.mark.parametrize("field", sorted(LATER_IN_CHAT))
async def test_a_chat_field_that_comes_later_is_refused_by_name(client: httpx.AsyncClient, field: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    body = {"messages": messages, field: "something"}
    response = await client.post("/v1/chat/completions", json=body)
    assert strict(response)["message"] == f"{field} is not supported yet"
    for neutral in (None, *LATER_IN_CHAT[field]):
        response = await client.post("/v1/chat/completions", json={"messages": messages, field: neutral})
        assert response.status_code == 200


async def test_neutral_values_are_not_mistaken_for_booleans(client: httpx.AsyncClient) -> None:
    for fields in ({"num_beams": True}, {"early_stopping": 0}, {"typical_p": True}):
        await refused(client, fields)


async def test_an_unknown_field_is_named_with_its_nearest_neighbour(client: httpx.AsyncClient) -> None:
    error = await refused(client, {"temprature": 1})
    assert error["message"] == "unknown field 'temprature'; did you mean 'temperature'?"
    assert error["param"] == "temprature"
    assert (await refused(client, {"zzzzzz": 1}))["message"] == "unknown field 'zzzzzz'"
    assert len((await refused(client, {"x" * 10_000: 1}))["message"]) < 200


async def test_context_overflow_has_its_own_code(client: httpx.AsyncClient) -> None:
    for fields in ({"max_tokens": 256}, {"prompt": [1] * 257}, {"prompt": "a dog " * 100_000}):
        assert (await refused(client, fields))["code"] == "context_length_exceeded"


async def test_allowed_ids_must_leave_something_to_draw(client: httpx.AsyncClient, served: Served) -> None:
    end = served.eos_token_ids[0]
    assert (await refused(client, {"allowed_token_ids": [end], "min_tokens": 1}))["param"] == "allowed_token_ids"


async def test_limits_come_from_the_settings(served: Served) -> None:
    app = make_app(FakeBatcher(served, saying(served, "x")), Limits(max_rows_per_prompt=2, max_stop=1, max_logprobs=3))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for fields in ({"n": 3}, {"stop": ["a", "b"]}, {"logprobs": 4}):
            await refused(client, fields)
        assert (await client.post(URL, json={"prompt": "a", "n": 2, "stop": "a", "logprobs": 3})).status_code == 200


async def test_an_unknown_model_is_a_404(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post(URL, json={"prompt": "a", "model": "gpt"}),
        await client.get("/v1/models/gpt"),
        await client.post("/tokenize", json={"prompt": "a", "model": "gpt"}),
    ):
        assert response.status_code == 404
        assert strict(response) | {"message": ""} == {
            "message": "", "type": "not_found_error", "param": "model", "code": "model_not_found",
        }  # fmt: skip


async def test_unknown_routes_and_methods_have_the_same_body(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v1/nothing")
    assert (missing.status_code, strict(missing)["type"]) == (404, "not_found_error")
    wrong = await client.get(URL)
    assert (wrong.status_code, strict(wrong)["type"]) == (405, "invalid_request_error")
    assert wrong.headers["Allow"] == "POST"


async def test_a_full_queue_refuses_before_anything_else_of_the_model(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    batcher.refusal = ApiError(429, "the queue is full", retry_after=3)
    response = await client.post(URL, json={"prompt": [10**6], "model": "gpt"})
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "3"
    assert strict(response)["type"] == "overloaded_error"


async def test_without_a_model_every_route_that_needs_one_says_503(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    batcher.refusal = ApiError(503, "loading", retry_after=1)
    responses = [
        await client.post(URL, json={"prompt": "a"}),
        await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}),
        await client.post("/tokenize", json={"prompt": "a"}),
        await client.post("/detokenize", json={"tokens": [1]}),
        await client.get("/v1/models"),
        await client.get("/v1/models/tiny"),
    ]
    for response in responses:
        assert response.status_code == 503
        assert strict(response)["type"] == "unavailable_error"


async def test_a_bug_is_a_500_without_details(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    def script(_: object) -> list[Any]:
        return [ZeroDivisionError("/secret/path")]

    batcher.script = script
    response = await client.post(URL, json={"prompt": "a"})
    assert response.status_code == 500
    assert strict(response) == {
        "message": "internal error", "type": "internal_error", "param": None, "code": "internal_error",
    }  # fmt: skip


PARAM_TEXTS: dict[str, dict[str, Any]] = {
    "negative_prompt": {"guidance_scale": 1.5},
    "kl_guided.prompt": {},
    "context_aware.prompt": {},
    "pmi.prompt": {},
    "cot_decoding.suffix": {},
    "entropix.think_text": {},
    "pause_tokens.text": {"pause_tokens": {"count": 1}},
    "sed.question": {},
    "sed.yes": {},
    "sed.no": {},
}


@pytest.mark.parametrize("path", PARAM_TEXTS)
async def test_a_text_among_the_parameters_is_bounded(client: httpx.AsyncClient, path: str) -> None:
    parent, _, name = path.rpartition(".")
    text = {name: "a" * (Limits().max_param_chars + 1)}
    fields = PARAM_TEXTS[path]
    error = await refused(
        client, {**fields, parent: {**fields.get(parent, {}), **text}} if parent else {**fields, **text}
    )
    assert error["param"] == path
    assert error["message"] == f"{path} must have at most {Limits().max_param_chars} characters"
