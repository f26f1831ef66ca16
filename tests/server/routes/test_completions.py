"""POST /v1/completions over a fake engine: every field reaches the engine, every answer has OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from decoding.contract.params import BestOf, Sampling
from server.served import Served
from server.settings.limits import Limits
from server.wire.requests import CompletionRequest
from tests.server.fake_engine import FakeBatcher, finished, logprob_of, make_app, saying, speak

URL = "/v1/completions"


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"model": "tiny", "prompt": "the dog", **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_completion_has_text_usage_and_what_ran(client: httpx.AsyncClient, served: Served) -> None:
    answer = await ask(client, max_tokens=50, seed=7)
    num_prompt, num_said = len(served.tokenizer.encode("the dog")), len(served.tokenizer.encode("Hello world")) + 1
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {"index": 0, "text": "Hello world", "logprobs": None, "finish_reason": "stop", "decoding": {"score": -1.5}}
    ]
    assert answer["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_said,
        "total_tokens": num_prompt + num_said,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    }
    effective = {"max_tokens": 50, "seed": 7}
    assert answer["decoding"] == {"strategy": "sampling", "effective": effective, "computed_tokens": 7}


async def test_every_form_of_prompt_reaches_the_engine(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    encode = served.tokenizer.encode
    forms: list[tuple[Any, list[tuple[int, ...]]]] = [
        ("a dog", [encode("a dog")]),
        (["a", "dog"], [encode("a"), encode("dog")]),
        ([5, 6], [(5, 6)]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
    ]
    for prompt, ids in forms:
        batcher.requests.clear()
        answer = await ask(client, prompt=prompt, n=2)
        assert [request.prompt_ids for request in batcher.requests] == ids
        assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(ids)))


async def test_rows_are_reserved_for_all_prompts_and_given_back(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    await ask(client, prompt=["a", "b", "c"], n=2, best_of=4)
    assert batcher.asked == [("completions", 12)]
    assert batcher.reserved == 0


async def test_every_decoding_field_reaches_the_engine(batcher: FakeBatcher) -> None:
    transport = httpx.ASGITransport(make_app(batcher, Limits(allow_priority=True)))
    answer = await ask(
        httpx.AsyncClient(transport=transport, base_url="http://test"),
        n=2, best_of=3, best_of_rank="sum", seed=-1, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1,
        presence_penalty=1, frequency_penalty=-0.5, repetition_penalty=1.2, logit_bias={"3": 5, "0": -1.5},
        allowed_token_ids=[9, 3, 0, 3], sampler_order="vllm", stop=["x", "yé"], stop_token_ids=[4], ignore_eos=True,
        min_tokens=2, max_tokens=9, logprobs=3, logprobs_mode="processed", prompt_logprobs=1, cache_salt="s",
        priority=-3, timeout=5,
    )  # fmt: skip
    (request,) = batcher.requests
    assert request.strategy == BestOf(n=2, best_of=3, rank_by="sum")
    assert request.seed == 2**64 - 1
    logits = request.logits
    assert (logits.temperature, logits.top_p, logits.top_k, logits.min_p) == (0.5, 0.9, 40, 0.1)
    assert (logits.presence_penalty, logits.frequency_penalty, logits.repetition_penalty) == (1.0, -0.5, 1.2)
    assert logits.logit_bias == ((0, -1.5), (3, 5.0))
    assert logits.allowed_token_ids == (0, 3, 9)
    assert logits.sampler_order == "vllm"
    stopping = request.stopping
    assert (stopping.stop, stopping.stop_token_ids) == ((b"x", "yé".encode()), (4,))
    assert (stopping.ignore_eos, stopping.min_tokens, stopping.max_tokens) == (True, 2, 9)
    assert (request.logprobs.output, request.logprobs.prompt, request.logprobs.mode) == (3, 1, "processed")
    assert (request.cache_salt, request.priority) == ("s", -3)
    assert batcher.strategies == [("best_of", 5.0)]
    assert answer["decoding"]["effective"] == {
        "n": 2, "best_of": 3, "best_of_rank": "sum", "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.2, "frequency_penalty": -0.5, "presence_penalty": 1.0,
        "logit_bias": {"0": -1.5, "3": 5.0}, "allowed_token_ids": [0, 3, 9], "sampler_order": "vllm", "max_tokens": 9,
        "min_tokens": 2, "stop": ["x", "yé"], "stop_token_ids": [4], "ignore_eos": True, "logprobs": 3,
        "prompt_logprobs": 1, "logprobs_mode": "processed", "priority": -3, "timeout": 5.0, "seed": 2**64 - 1,
    }  # fmt: skip


async def test_null_means_the_default_everywhere(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, **dict.fromkeys(name for name in CompletionRequest.model_fields if name != "prompt"))
    (request,) = batcher.requests
    assert request.strategy == Sampling()
    assert request.stopping.max_tokens == 16
    assert request.logits.temperature == 1.0


async def test_greedy_says_so_and_lists_no_filter_that_did_not_run(client: httpx.AsyncClient) -> None:
    decoding = (await ask(client, temperature=0, top_p=0.5, top_k=3, presence_penalty=1, seed=1))["decoding"]
    assert decoding["strategy"] == "greedy"
    assert decoding["effective"] == {"temperature": 0.0, "presence_penalty": 1.0, "max_tokens": 16, "seed": 1}


async def test_top_k_of_minus_one_zero_or_the_whole_vocabulary_is_off(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    for top_k in (-1, 0, served.vocab_size, 2**31 - 1):
        await ask(client, top_k=top_k)
    assert {request.logits.top_k for request in batcher.requests} == {0}


async def test_min_new_tokens_is_min_tokens(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, min_new_tokens=4)
    assert batcher.requests[0].stopping.min_tokens == 4


async def test_best_of_equal_to_n_is_plain_sampling_unless_a_rank_is_asked_for(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    await ask(client, n=2, best_of=2)
    await ask(client, n=2, best_of=2, best_of_rank="mean")
    assert [request.strategy for request in batcher.requests] == [Sampling(n=2), BestOf(n=2, best_of=2)]


async def test_seeds_are_drawn_apart_or_shared_as_given(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    drawn = (await ask(client, prompt=["a", "a", "a"]))["decoding"]["effective"]["seed"]
    assert drawn == [request.seed for request in batcher.requests]
    assert len(set(drawn)) == 3
    batcher.requests.clear()
    given = (await ask(client, prompt=["a", "a"], seed=11))["decoding"]["effective"]["seed"]
    assert given == 11
    assert [request.seed for request in batcher.requests] == [11, 11]


async def test_legacy_logprobs_are_four_parallel_lists(client: httpx.AsyncClient, served: Served) -> None:
    logprobs = (await ask(client, logprobs=2, max_tokens=3))["choices"][0]["logprobs"]
    ids = served.tokenizer.encode("Hello world")[:3]
    name = served.tokenizer.vocabulary.name
    assert logprobs["tokens"] == [name(i) for i in ids]
    assert logprobs["token_logprobs"] == [logprob_of(i) for i in ids]
    assert [sorted(top) for top in logprobs["top_logprobs"]] == [
        sorted({name(i), name(i + 1), name(i + 2)}) for i in ids
    ]
    assert logprobs["text_offset"] == [0, len(name(ids[0])), len(name(ids[0]) + name(ids[1]))]


async def test_logprobs_of_half_characters_do_not_collide(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "ü")
    logprobs = (await ask(client, logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc3", "bytes:\\xbc", "<|im_end|>"]
    assert logprobs["text_offset"] == [0, 0, 1]
    assert [len(top) for top in logprobs["top_logprobs"]] == [1, 1, 1]


async def test_echo_puts_the_prompt_before_the_answer(client: httpx.AsyncClient) -> None:
    assert (await ask(client, echo=True))["choices"][0]["text"] == "the dogHello world"
    assert (await ask(client, echo=True, prompt=["a ", "🙂"], n=2))["choices"][3]["text"] == "🙂Hello world"


async def test_echo_of_token_ids_shows_their_text(client: httpx.AsyncClient, served: Served) -> None:
    ids = list(served.tokenizer.encode("the 日本 dog"))
    assert (await ask(client, echo=True, prompt=ids))["choices"][0]["text"] == "the 日本 dogHello world"


async def test_echo_with_no_tokens_scores_the_prompt(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    answer = await ask(client, echo=True, max_tokens=0, logprobs=1)
    choice, ids = answer["choices"][0], served.tokenizer.encode("the dog")
    assert batcher.requests[0].stopping.max_tokens == 0
    assert choice["text"] == "the dog"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, *map(logprob_of, ids[1:])]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["text_offset"][0] == 0
    assert "".join(choice["logprobs"]["tokens"]) == "the dog"
    assert answer["usage"]["completion_tokens"] == 0


async def test_echoed_offsets_go_on_into_the_answer(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, echo=True, logprobs=0, max_tokens=2))["choices"][0]
    text, logprobs = choice["text"], choice["logprobs"]
    for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[start:].startswith(token)


async def test_no_tokens_without_echo_is_an_empty_completion(client: httpx.AsyncClient) -> None:
    answer = await ask(client, max_tokens=0)
    assert answer["choices"][0]["text"] == ""
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


async def test_token_ids_and_prompt_logprobs_come_when_asked(client: httpx.AsyncClient, served: Served) -> None:
    choice = (await ask(client, return_token_ids=True, prompt_logprobs=1))["choices"][0]
    assert choice["token_ids"] == [*served.tokenizer.encode("Hello world"), *served.eos_token_ids]
    ids = served.tokenizer.encode("the dog")
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1] == {
        str(ids[1] + 1): {
            "logprob": logprob_of(ids[1] + 1),
            "rank": 1,
            "decoded_token": served.tokenizer.vocabulary.name(ids[1] + 1),
        },
        str(ids[1]): {
            "logprob": logprob_of(ids[1]),
            "rank": None,
            "decoded_token": served.tokenizer.vocabulary.name(ids[1]),
        },
    }


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop": "wor"}, "Hello "),
        ({"stop": ["ld", "o w"]}, "Hell"),
        ({"stop": "wor", "include_stop_str_in_output": True}, "Hello wor"),
        ({"stop": "l", "min_tokens": 8}, "Hello wor"),
    ],
)
async def test_the_text_ends_where_a_stop_begins(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served, fields: dict[str, Any], text: str
) -> None:
    letters = [served.tokenizer.encode(letter)[0] for letter in "Hello world"]
    batcher.script = lambda request: [*speak(served, request, letters), finished()]
    choice = (await ask(client, **fields))["choices"][0]
    assert choice["text"] == text
    assert choice["finish_reason"] == "stop"


async def test_a_stop_token_is_no_text_unless_asked_for(client: httpx.AsyncClient, served: Served) -> None:
    last = served.tokenizer.encode("Hello world")[-1]
    shown = served.tokenizer.vocabulary.name(last)
    hidden = (await ask(client, stop_token_ids=[last]))["choices"][0]["text"]
    full = (await ask(client, stop_token_ids=[last], include_stop_str_in_output=True))["choices"][0]["text"]
    assert hidden + shown == full == "Hello world"


async def test_special_tokens_are_text_only_when_asked_for(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "a<|im_start|>b")
    assert (await ask(client))["choices"][0]["text"] == "ab"
    assert (await ask(client, skip_special_tokens=False))["choices"][0]["text"] == "a<|im_start|>b"


async def test_an_answer_cut_inside_a_character_leaves_it_out(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served
) -> None:
    batcher.script = saying(served, "aü")
    choice = (await ask(client, max_tokens=2))["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a", "length")


async def test_max_completion_tokens_is_max_tokens(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, max_completion_tokens=3, max_tokens=None)
    assert batcher.requests[0].stopping.max_tokens == 3
    response = await client.post(URL, json={"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "max_tokens")


async def test_ignored_fields_are_listed_in_a_header(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "user": "me", "store": True, "metadata": None}
    response = await client.post(URL, json=body)
    assert response.headers["X-Ignored-Params"] == "store, user"
    assert "X-Ignored-Params" not in (await client.post(URL, json={"prompt": "a"})).headers


async def test_a_default_max_tokens_shrinks_to_the_context(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    await ask(client, prompt=[1] * 250)
    assert batcher.requests[0].stopping.max_tokens == 6
