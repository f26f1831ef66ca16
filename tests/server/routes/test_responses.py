"""POST /v1/responses over a fake engine: what reaches it, what comes back, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from decoding.contract.frames import Chunk, Finished, Output
from server.errors import ApiError
from server.served import Served
from tests.server.fake_engine import FakeBatcher, make_app, make_served, saying


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/responses", json={"input": "the dog", **fields})
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def events_of(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/responses", json={"input": "the dog", "stream": True, **fields})
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block.startswith("event: ")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [kind for kind, _ in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def test_a_string_is_what_the_user_says_and_instructions_come_before(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    said = await ask(client, instructions="be kind", max_output_tokens=20, temperature=0.5, seed=3, top_k=4)
    (request,) = batcher.requests
    prompt = served.tokenizer.decode(request.prompt_ids, skip_special_tokens=False)
    assert (
        prompt == "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nthe dog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (request.logits.top_k, request.logits.temperature, request.stopping.max_tokens) == (4, 0.5, 20)
    assert batcher.asked == [("responses", 1)]
    assert said["object"] == "response"
    assert said["output"][0]["content"] == [
        {"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": None}
    ]
    assert (said["status"], said["incomplete_details"], said["instructions"]) == ("completed", None, "be kind")
    num_prompt, num_output = len(request.prompt_ids), said["usage"]["output_tokens"]
    assert said["usage"]["input_tokens"] == num_prompt
    assert said["usage"]["total_tokens"] == num_prompt + num_output
    assert said["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert said["decoding"]["effective"]["top_k"] == 4


async def test_an_answer_can_be_sent_back_as_history(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    first = await ask(client, include=["message.output_text.logprobs"])
    question = {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
    await ask(client, input=[question, *first["output"], {"type": "message", "role": "developer", "content": "c"}])
    prompt = served.tokenizer.decode(batcher.requests[-1].prompt_ids, skip_special_tokens=False)
    turns = [("user", "a\nb"), ("assistant", "Hello world"), ("system", "c")]  # the template knows no developer
    expected = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert prompt == f"{expected}<|im_start|>assistant\n"


async def test_an_answer_that_was_cut_is_incomplete(client: httpx.AsyncClient) -> None:
    said = await ask(client, max_output_tokens=1)
    assert (said["status"], said["output"][0]["status"]) == ("incomplete", "incomplete")
    assert said["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (await events_of(client, max_output_tokens=1))[-1]["type"] == "response.incomplete"


async def test_a_stream_s_events_add_up_to_the_plain_answer(client: httpx.AsyncClient) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "return_token_ids": True, "seed": 1}
    events = await events_of(client, **fields)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    plain, streamed = await ask(client, **fields), events[-1]["response"]
    for said in (plain, streamed):
        del said["id"], said["created_at"], said["output"][0]["id"]
    assert streamed == plain
    content = plain["output"][0]["content"][0]
    assert "".join(event["delta"] for event in deltas) == content["text"] == "Hello world"
    assert [scored for event in deltas for scored in event["logprobs"]] == content["logprobs"]
    assert len(content["logprobs"][0]["top_logprobs"]) == 2
    assert len({event["item_id"] for event in events if "item_id" in event}) == 1


async def test_ignored_fields_are_listed_and_the_answer_says_that_nothing_is_stored(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/v1/responses", json={"input": "a", "store": True, "metadata": {"a": "b"}, "user": "me"}
    )
    assert answer.headers["X-Ignored-Params"] == "metadata, store, user"
    assert answer.json()["store"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"input": 7}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input"),
        ({"n": 2}, "n"),
        ({"best_of": 2, "num_beams": 3}, "best_of"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object"}}, "response_format": {"type": "text"}}, "text.format"),
        ({"text": {"form": {}}}, "text.form"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"background": True}, "background"),
        ({"truncation": "some"}, "truncation"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_output_tokens": 500}, "messages"),
    ],
)
async def test_what_a_response_cannot_be_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post("/v1/responses", json={"input": "a", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error


async def test_neutral_fields_ask_for_nothing(client: httpx.AsyncClient) -> None:
    await ask(
        client, tools=[], tool_choice="auto", parallel_tool_calls=True, background=False, truncation="disabled",
        text={"format": {"type": "text"}}, include=[], previous_response_id=None, reasoning=None,
        stream_options={"include_obfuscation": False},
    )  # fmt: skip


async def test_what_current_clients_send_along_has_no_effect_and_is_listed(client: httpx.AsyncClient) -> None:
    fields = {
        "text": {"verbosity": "low"}, "include": ["reasoning.encrypted_content"], "prompt_cache_retention": "24h",
        "reasoning": {"effort": None, "summary": "auto", "generate_summary": None},
    }  # fmt: skip
    answer = await client.post("/v1/responses", json={"input": "a", **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Ignored-Params"] == (
        "include.reasoning.encrypted_content, prompt_cache_retention, reasoning.summary, text.verbosity"
    )


async def prompt_of(client: httpx.AsyncClient, batcher: FakeBatcher, served: Served, **fields: Any) -> str:
    await ask(client, **fields)
    return served.tokenizer.decode(batcher.requests[-1].prompt_ids, skip_special_tokens=False)


QUESTION = {"role": "user", "content": "sum?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}', "id": "fc_1", "status": None}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}]}


async def test_calls_and_results_of_another_server_are_history(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "I add."}]}
    prompt = await prompt_of(client, batcher, served, input=[QUESTION, said, CALL, RESULT, QUESTION])
    assert prompt.startswith(
        '<|im_start|>user\nsum?<|im_end|>\n<|im_start|>assistant\nI add.\n<tool_call>\n{"name": "add"'
    )
    assert prompt.count("<|im_start|>assistant") == 2
    assert "<tool_response>\none\n</tool_response>" in prompt


async def test_thoughts_go_with_what_the_assistant_says_next(batcher: FakeBatcher) -> None:
    served = make_served(
        4096, "{% for m in messages %}{{ m.role }}({{ m.reasoning_content }}){{ m.content }};{% endfor %}"
    )
    thinking = {
        "type": "reasoning", "id": "rs_1", "encrypted_content": "xyz",
        "summary": [{"type": "summary_text", "text": "s"}],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }  # fmt: skip
    other = FakeBatcher(served, saying(served, "ok"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(other)), base_url="http://test") as client:
        items = [QUESTION, thinking, {"role": "assistant", "content": "two"}, QUESTION]
        answer = await client.post("/v1/responses", json={"input": items})
    assert answer.headers["X-Ignored-Params"] == "input.encrypted_content, input.summary"
    prompt = served.tokenizer.decode(other.requests[0].prompt_ids, skip_special_tokens=False)
    assert prompt == "user()sum?;assistant(hm)two;user()sum?;"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[1] is an item_reference, but nothing is stored here: send"),
        ({"id": "msg_1"}, "input[1] is an item_reference, but nothing is stored here: send"),
        ({"type": "computer_call", "id": "x"}, "input[1] must be an item of type message or function_call or"),
        (7, "input[1] must be an item of type message or function_call or"),
        ({"role": "user", "content": [{"type": "input_text", "text": "a", "foo": 1}]},
         "unknown field 'input[1].content[0].foo'"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
         "input[1].content[0] must be a part of type input_text or"),
        (CALL | {"arguments": 7}, "input[1].arguments must be a valid string"),
    ],
)  # fmt: skip
async def test_an_item_that_cannot_work_is_refused_by_its_path(
    client: httpx.AsyncClient, item: Any, message: str
) -> None:
    answer = await client.post("/v1/responses", json={"input": [QUESTION, item]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert answer.json()["error"]["param"].startswith("input")


async def test_truncation_auto_leaves_out_the_oldest_turns(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    turns = [
        {"role": role, "content": f"{role} {number} " + "x" * 40}
        for number in range(9)
        for role in ("user", "assistant")
    ]
    items = [{"role": "system", "content": "be kind"}, *turns, QUESTION]
    assert (await client.post("/v1/responses", json={"input": items})).status_code == 400
    said = await ask(client, input=items, truncation="auto", max_output_tokens=20)
    prompt = served.tokenizer.decode(batcher.requests[-1].prompt_ids, skip_special_tokens=False)
    assert said["truncation"] == "auto"
    assert prompt.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nuser ")
    assert prompt.endswith("sum?<|im_end|>\n<|im_start|>assistant\n")
    one_more = len(
        served.tokenizer.encode("".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns[:2]))
    )
    assert len(batcher.requests[-1].prompt_ids) + 20 <= served.max_model_len
    assert len(batcher.requests[-1].prompt_ids) + 20 + one_more > served.max_model_len
    answer = await client.post("/v1/responses", json={"input": "x" * 4000, "truncation": "auto"})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


async def test_a_model_that_recommends_several_choices_gives_one(served: Served) -> None:
    own = replace(served, generation_defaults={"num_return_sequences": 2, "temperature": 0.5})
    batcher = FakeBatcher(own, saying(own, "Hello world"))
    transport = httpx.ASGITransport(make_app(batcher))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        said = await ask(client)
    assert said["output"][0]["content"][0]["text"] == "Hello world"
    assert (batcher.requests[0].strategy.n, batcher.requests[0].logits.temperature) == (1, 0.5)


async def test_padded_events_all_have_sizes_of_one_kind(client: httpx.AsyncClient) -> None:
    events = await events_of(client, stream_options={"include_obfuscation": True})
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert all("obfuscation" in event for event in deltas)
    assert not any("obfuscation" in event for event in events if event not in deltas)


async def test_an_error_before_the_first_event_is_a_plain_answer_and_behind_it_an_event(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = lambda _: [ApiError(503, "the worker died", code="worker_died")]
    answer = await client.post("/v1/responses", json={"input": "a", "stream": True})
    assert answer.status_code == 503
    ids = served.tokenizer.encode("ab")
    batcher.script = lambda _: [Output(0, (Chunk(0, ids),)), ApiError(503, "the worker died", code="worker_died")]
    answer = await client.post("/v1/responses", json={"input": "a", "stream": True})
    assert answer.status_code == 200
    last = answer.text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_died"
    assert "response.completed" not in answer.text


async def test_a_trace_and_figures_stand_in_the_last_event(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    said = Chunk(0, served.tokenizer.encode("Hi"), finish_reason="stop", score=-1.0, figures={"cot_confidence": 0.5})
    batcher.script = lambda _: [Output(0, (said,), finished=Finished(0, 9, 0.0, 0.0, 0.0, 0, drafted=3, accepted=2))]
    whole = (await events_of(client, cot_decoding={"k": 4}))[-1]["response"]
    assert whole["output"][0]["decoding"] == {"score": -1.0, "cot_confidence": 0.5}
    details = whole["usage"]["output_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (2, 1)


async def test_prompt_logprobs_are_told(client: httpx.AsyncClient, batcher: FakeBatcher, served: Served) -> None:
    batcher.script = saying(served, "Hi")
    assert (await ask(client, prompt_logprobs=1))["prompt_logprobs"][0] is None
