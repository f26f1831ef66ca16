"""The table of strategies: what it says is what the server does, in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from decoding.contract.params import PARAMS, LogitsParams, Sampling
from server.served import Served
from server.translate.catalogue import combines, properties
from server.translate.table import EXCLUSIONS, NEEDS, OFF, SEARCHES, STEPS, STRATEGIES, Exclusion
from tests.server.asking import ASKING, BEARING, BESIDE, Fields
from tests.server.fake_engine import FakeBatcher, saying

URL = "/v1/completions"


@pytest.fixture
def batcher(served: Served) -> FakeBatcher:
    """With a draft model, so that every strategy is there."""
    drafting = dataclasses.replace(served, beside=BESIDE)
    return FakeBatcher(drafting, saying(drafting, "Hello world"))


def field_of(key: str) -> str:
    return key.partition("=")[0]


async def ask(client: httpx.AsyncClient, fields: Fields) -> httpx.Response:
    return await client.post(URL, json={"prompt": "the dog", **fields})


async def refused(client: httpx.AsyncClient, fields: Fields) -> dict[str, Any]:
    response = await ask(client, fields)
    assert response.status_code == 400, f"{fields} was taken: {response.text}"
    error: dict[str, Any] = response.json()["error"]
    assert error["param"] in error["message"]
    return error


def names_both(message: str, one: str, other: str) -> bool:
    return field_of(one) in message and field_of(other) in message


def excluded() -> Iterator[tuple[str, str, str]]:
    for strategy in STRATEGIES:
        for exclusion in strategy.excludes:
            yield from ((strategy.name, key, strategy.when[0]) for key in exclusion.keys if key != "sampler_order")


@pytest.mark.parametrize(("name", "key", "by"), list(excluded()))
async def test_what_a_strategy_excludes_is_a_400_that_names_both(
    client: httpx.AsyncClient, name: str, key: str, by: str
) -> None:
    error = await refused(client, BEARING[key] | ASKING[name])
    assert names_both(error["message"], key, by)


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda e: e.keys[0])
async def test_fields_that_exclude_each_other_are_a_400_that_names_both(
    client: httpx.AsyncClient, exclusion: Exclusion
) -> None:
    for key in exclusion.keys:
        for other in exclusion.others:
            error = await refused(client, BEARING[key] | BEARING[other])
            assert names_both(error["message"], key, other)
            assert exclusion.reason in error["message"]


@pytest.mark.parametrize("name", list(ASKING))
async def test_what_combines_with_a_strategy_is_taken(
    client: httpx.AsyncClient, batcher: FakeBatcher, name: str
) -> None:
    strategy = next(each for each in STRATEGIES if each.name == name)
    for step in combines(strategy):
        response = await ask(client, ASKING[name] | BEARING[step])
        assert response.status_code == 200, (step, response.text)
        assert response.json()["decoding"]["strategy"] == name
        assert set(BEARING[step]) <= set(response.json()["decoding"]["effective"])
    assert {request.strategy.NAME for request in batcher.requests} == {strategy.params.NAME}


@pytest.mark.parametrize("name", [strategy.name for strategy in SEARCHES])
async def test_two_strategies_in_one_request_are_a_400_that_names_both(client: httpx.AsyncClient, name: str) -> None:
    mine = next(strategy for strategy in SEARCHES if strategy.name == name)
    for other in SEARCHES:
        if set(other.when) <= set(mine.when) or set(mine.when) <= set(other.when):
            continue
        error = await refused(client, ASKING[name] | ASKING[other.name])
        assert any(names_both(error["message"], a, b) for a in mine.when for b in other.when), error["message"]


@pytest.mark.parametrize("name", [strategy.name for strategy in SEARCHES])
async def test_a_strategy_s_own_fields_mean_nothing_without_it(client: httpx.AsyncClient, name: str) -> None:
    strategy = next(each for each in SEARCHES if each.name == name)
    shared = {"top_k", "use_beam_search", "speculative"} | set(map(field_of, strategy.when))
    values: Fields = {
        "best_of_rank": "mean", "length_penalty": 2, "length_penalty_type": "gnmt", "coverage_penalty": 0.2,
        "dola_relative_top": 0.2,
        "early_stopping": True, "beam_prune": 3, "diversity_penalty": 0.5, "negative_prompt": "x",
        "max_matching_ngram_size": 3, "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.4, "num_beams": 2, "num_beam_groups": 2, "beam_mode": "best_first",
    }  # fmt: skip
    for field in set(strategy.own_fields) - shared:
        off = {"speculative": False} if field == "num_assistant_tokens" else {}
        error = await refused(client, {field: values[field], **off})
        assert "without" in error["message"]
        assert error["param"] == field


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.key)
async def test_a_field_without_the_one_it_needs_is_a_400_that_names_both(client: httpx.AsyncClient, need: Any) -> None:
    values = {name: value for fields in BEARING.values() for name, value in fields.items()}
    values |= {"stream_options": {}, "top_logprobs": 2}
    fields = {need.key: values[need.key]}
    if need.key == "top_logprobs":
        response = await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], **fields}
        )
        assert response.status_code == 400
        return
    assert (await refused(client, fields))["message"] == f"{need.key} has no meaning without {need.needs}"


@pytest.mark.parametrize("field", sorted(OFF.keys() & properties().keys() - {"logprobs", "top_logprobs"}))
async def test_a_value_that_asks_for_nothing_is_taken_everywhere(client: httpx.AsyncClient, field: str) -> None:
    for value in (None, *OFF[field]):
        response = await ask(client, {field: value})
        is_narrow = value is not None and field in {"num_beams", "penalty_alpha"}
        assert response.json()["decoding"]["strategy"] == ("greedy" if is_narrow else "sampling")
        if field not in {"num_beams", "penalty_alpha"}:
            assert (await ask(client, {"num_beams": 2, field: value})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "one", "other"),
    [
        ({"num_beams": 4, "edt": {"theta": 1}}, "edt", "num_beams"),
        ({"num_beams": 4, "kl_guided": {}}, "num_beams", "kl_guided"),
        ({"num_beams": 4, "entropix": {}}, "num_beams", "entropix"),
        ({"num_beams": 4, "best_of": 4}, "best_of", "num_beams"),
        ({"num_beams": 4, "temperature": 0.7}, "temperature", "num_beams"),
        ({"use_beam_search": True, "n": 4, "temperature": 0.7}, "temperature", "use_beam_search"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "do_sample", "num_beam_groups"),
        ({"num_beams": 4, "speculative": True}, "num_beams", "speculative"),
        ({"best_of": 4, "prompt_lookup_num_tokens": 4}, "best_of", "prompt_lookup_num_tokens"),
        ({"penalty_alpha": 0.5, "top_k": 4, "n": 2}, "n", "penalty_alpha"),
        ({"penalty_alpha": 0.5, "top_k": 4, "do_sample": True}, "do_sample", "penalty_alpha"),
        ({"penalty_alpha": 0.5}, "penalty_alpha", "top_k"),
        ({"use_beam_search": True, "n": 4, "sed": {}}, "use_beam_search", "sed"),
        ({"num_assistant_tokens": 3, "sed": {}}, "sed", "num_assistant_tokens"),
        ({"num_beams": 4, "beam_mode": "best_first", "early_stopping": True}, "early_stopping", "beam_mode"),
        ({"cot_decoding": {"max_answer": 4}}, "cot_decoding.max_answer", "cot_decoding.suffix"),
        ({"num_beams": 1, "temperature": 0.7}, "temperature", "num_beams 1"),
        ({"use_beam_search": True, "temperature": 0.7}, "temperature", "use_beam_search"),
        ({"num_beams": 1, "num_return_sequences": 3}, "num_return_sequences", "num_beams 1"),
        ({"num_beams": 1, "kl_guided": {}}, "num_beams", "kl_guided"),
        ({"penalty_alpha": 0, "n": 2}, "n", "penalty_alpha 0"),
        ({"num_beams": 1, "length_penalty": 2}, "length_penalty", "num_beams"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": False, "top_k": 9, "temperature": 0.8}, "temperature",
         "num_beams"),
        ({"n": 2, "num_return_sequences": 3}, "n", "num_return_sequences"),
    ],
)  # fmt: skip
async def test_senseless_combinations_name_both_fields(
    client: httpx.AsyncClient, fields: Fields, one: str, other: str
) -> None:
    error = await refused(client, fields)
    assert one in error["message"]
    assert other in error["message"]


async def test_greedy_and_beams_take_filters_at_temperature_0_for_nothing(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    for fields in ({}, {"num_beams": 2}, {"use_beam_search": True, "n": 2}):
        answer = (await ask(client, {"temperature": 0, "top_p": 0.5, "top_k": 9, **fields})).json()
        assert not {"top_p", "top_k"} & set(answer["decoding"]["effective"])
    assert {(r.logits.top_p, r.logits.top_k, r.logits.temperature) for r in batcher.requests} == {(1.0, 0, 0.0)}


WIDTH_1 = (
    {"num_beams": 1},
    {"use_beam_search": True},
    {"use_beam_search": True, "num_beams": 1},
    {"penalty_alpha": 0},
    {"penalty_alpha": 0, "top_k": 4},
)


@pytest.mark.parametrize("fields", WIDTH_1, ids=str)
async def test_a_search_of_width_1_is_greedy_decoding_unless_it_samples(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: Fields
) -> None:
    """As Hugging Face has it: logits, not log-probs, go through the penalties then."""
    for more in ({}, {"temperature": 0}, {"repetition_penalty": 1.3}, {"do_sample": False}):
        decoding = (await ask(client, fields | more)).json()["decoding"]
        assert decoding["strategy"] == "greedy"
        assert decoding["effective"]["temperature"] == 0
    assert {(r.strategy, r.logits.is_greedy) for r in batcher.requests} == {(Sampling(), True)}
    for more in ({"temperature": 0.7}, {"n": 2}):
        answer = await ask(client, fields | more | {"do_sample": True})
        if "use_beam_search" not in fields or "num_beams" in fields or "n" not in more:
            assert answer.json()["decoding"]["strategy"] == "sampling", answer.text


@pytest.mark.parametrize("fields", [{"dola_layers": "low"}, {"guidance_scale": 2}, {"prompt_lookup_num_tokens": 3}])
async def test_width_1_draws_nothing_in_what_samples_too(
    client: httpx.AsyncClient, batcher: FakeBatcher, fields: Fields
) -> None:
    for more, is_greedy in (({}, False), ({"num_beams": 1}, True), ({"num_beams": 1, "do_sample": True}, False)):
        assert (await ask(client, fields | more)).status_code == 200
        assert batcher.requests[-1].logits.is_greedy is is_greedy


async def test_beams_that_do_not_sample_may_be_ranked_by_what_temperature_and_filters_leave(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    fields = {"do_sample": False, "num_beams": 5, "temperature": 0.8, "top_k": 50}
    answer = (await ask(client, fields)).json()["decoding"]
    assert answer["strategy"] == "beam"
    assert fields.items() <= answer["effective"].items()
    assert (batcher.requests[0].logits.temperature, batcher.requests[0].logits.top_k) == (0.8, 50)
    again = (await ask(client, answer["effective"])).json()["decoding"]
    assert again == answer
    assert (await ask(client, fields | {"num_beams": 1})).json()["decoding"]["strategy"] == "greedy"
    plain = (await ask(client, {"do_sample": False, "num_beams": 5})).json()["decoding"]
    assert "do_sample" not in plain["effective"]


async def test_temperatures_beyond_openai_s_are_taken_up_to_the_server_s_bound(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    for fields in ({"temperature": 3, "top_n_sigma": 1}, {"adapt": {"hot": 10, "cold": 3}}):
        assert (await ask(client, fields)).status_code == 200
    assert batcher.requests[0].logits.temperature == 3
    for fields in ({"temperature": 10.5}, {"adapt": {"hot": 10.5, "cold": 1}}, {"adapt": {"hot": 1, "cold": 10.5}}):
        error = await refused(client, fields)
        assert error["param"] in {"temperature", "adapt.hot", "adapt.cold"}


async def test_beam_sample_takes_temperatures_that_change(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    for fields in ({"edt": {"theta": 0.1}}, {"adapt": {"hot": 0.8, "cold": 0.3}}):
        answer = await ask(client, {"num_beams": 3, "do_sample": True, **fields})
        assert answer.json()["decoding"]["strategy"] == "beam_sample"
        assert fields.keys() <= answer.json()["decoding"]["effective"].keys()


def test_every_params_field_is_reached_from_a_wire_field() -> None:
    for strategy in STRATEGIES:
        for path in strategy.paths.values():
            schema: Any = {"properties": properties()}
            for name in path.split("."):
                options = schema.get("anyOf", [schema])
                schema = next(o for o in options if "properties" in o)["properties"][name]
    hidden = {"min_tokens_to_keep", "grammar", "forced_eos_token_ids", "plugin_steps"}
    assert {field.name for field in dataclasses.fields(LogitsParams)} - hidden <= properties().keys()
    assert {strategy.params.NAME for strategy in STRATEGIES} == set(PARAMS) - {"pooling"}


def test_every_wire_field_is_in_the_table_or_taken_by_all() -> None:
    shown = {key for step in STEPS for key in step.keys} | {name for each in STRATEGIES for name in each.own_fields}
    assert shown <= properties().keys()
    assert properties().keys() - shown == {
        "model", "stream", "stream_options", "seed", "n", "num_return_sequences", "stop", "stop_token_ids",
        "ignore_eos", "prompt_logprobs", "logprobs_mode", "return_token_ids", "skip_special_tokens",
        "include_stop_str_in_output", "trace", "cache_salt", "priority", "timeout", "prompt", "suffix", "max_tokens",
        "echo", "logprobs", "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
        "parallel_tool_calls", "chat_template_kwargs", "documents", "add_generation_prompt", "continue_final_message",
        "decoder_prompt", "forced_bos_token_id",
    }  # fmt: skip
    assert all("description" in schema for name, schema in properties().items() if name not in {"prompt", "messages"})


def test_the_defaults_of_the_schema_are_those_that_hold() -> None:
    """But for what asks for the strategy, whose schema says which value does not."""
    for strategy in STRATEGIES:
        for field in dataclasses.fields(strategy.params):
            name, _, inner = strategy.paths[field.name].partition(".")
            if inner and inner not in {"question", "yes", "no"} and field.default is not dataclasses.MISSING:
                (schema,) = (each for each in properties()[name]["anyOf"] if "properties" in each)
                default = schema["properties"][inner]["default"]
                assert default == (field.default or None if field.default == () else field.default), (name, inner)
    neutral = LogitsParams()
    for field in dataclasses.fields(LogitsParams):
        if field.name in properties() and getattr(neutral, field.name) not in (None, ()):
            assert properties()[field.name]["default"] == getattr(neutral, field.name)
