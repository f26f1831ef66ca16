"""What a model's generation_config.json sets holds where a request says nothing, field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from transformers import GenerationConfig

from decoding.contract.params import Beam, BeamSample, Contrastive, GroupBeam, Request
from server.served import Served
from server.translate.asked import asked_of
from server.translate.generation_defaults import BESIDE, LACKING, NOTHING_HERE, RENAMED, TAKEN, recommended
from server.translate.plan import Plan
from server.translate.translate import chat_plan, completion_plan
from server.wire.requests import ChatRequest, CompletionRequest
from server.worker.model_files import ModelError
from tests.server.fake_engine import make_served

BART: dict[str, Any] = {
    "num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 8, "max_length": 20,
    "early_stopping": True, "forced_eos_token_id": 2, "decoder_start_token_id": 2, "transformers_version": "4.0",
}  # fmt: skip


def told(directory: Path, **values: Any) -> tuple[dict[str, Any], list[str]]:
    """What is taken of a file, and what the log says is not."""
    (directory / "generation_config.json").write_text(json.dumps(values))
    with structlog.testing.capture_logs() as lines:
        found = recommended(directory)
    assert len(lines) <= 1
    return found, [name for line in lines for name in line["fields"].split(", ")]


async def planned(served: Served, directory: Path, values: dict[str, Any], **asked: Any) -> Plan:
    own = replace(served, generation_defaults=told(directory, **values)[0])
    return await completion_plan(asked_of(CompletionRequest.model_validate({"prompt": "hello"} | asked)), own)


async def request(served: Served, directory: Path, values: dict[str, Any], **asked: Any) -> Request:
    return (await planned(served, directory, values, **asked)).requests[0]


def test_every_field_of_transformers_is_taken_or_listed() -> None:
    fields = {*vars(GenerationConfig())}
    assert fields - TAKEN - NOTHING_HERE - LACKING == set()
    assert not TAKEN & NOTHING_HERE | TAKEN & LACKING | NOTHING_HERE & LACKING
    assert {RENAMED.get(name, name) for name in TAKEN} - BESIDE <= CompletionRequest.model_fields.keys()


VALUES: dict[str, Any] = {
    "temperature": 0.5, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "stop_strings": ["x"],
    "exponential_decay_length_penalty": [3, 1.5], "length_penalty": 2.0, "early_stopping": True, "num_beams": 2,
    "num_return_sequences": 2, "penalty_alpha": 0.5, "dola_layers": "low", "guidance_scale": 2.0, "do_sample": False,
    "prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 3, "num_assistant_tokens": 3, "max_length": 30,
    "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 0.5, "max_new_tokens": 7,
    "min_length": 3, "min_new_tokens": 2, "bad_words_ids": [[3, 4]], "suppress_tokens": [5], "forced_eos_token_id": 2,
    "num_beam_groups": 2, "diversity_penalty": 0.75, "forced_bos_token_id": 1,
}  # fmt: skip
BESIDE_THEM: dict[str, dict[str, Any]] = {
    "num_beam_groups": {"num_beams": 2}, "diversity_penalty": {"num_beams": 2, "num_beam_groups": 2},
    "penalty_alpha": {"top_k": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_each_that_is_taken_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"is_encoder_decoder": true}')
    found, left = told(tmp_path, **{name: VALUES[name]}, **BESIDE_THEM.get(name, {}))
    assert found[RENAMED.get(name, name)] == VALUES[name]
    assert not left


@pytest.mark.parametrize("name", sorted(LACKING))
def test_each_that_is_lacking_is_told(tmp_path: Path, name: str) -> None:
    assert told(tmp_path, **{name: [[1]]}) == ({}, [name])
    assert told(tmp_path, **{name: True, "top_p": 0.5})[1] == [name]
    for off in (None, False, [], 1.0 if name == "encoder_repetition_penalty" else 0):
        assert told(tmp_path, **{name: off}) == ({}, [])


def test_the_rest_is_passed_over_and_what_nobody_knows_is_told(tmp_path: Path) -> None:
    assert told(tmp_path, **dict.fromkeys(NOTHING_HERE, 7)) == ({}, [])
    assert told(tmp_path, chat_format="chatml", trust=1) == ({}, ["chat_format", "trust"])


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ({"num_beams": 4, "guidance_scale": 2.0}, ["guidance_scale"]),
        ({"num_beams": 65}, ["num_beams"]),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 0.5}, ["num_beam_groups", "diversity_penalty"]),
        ({"penalty_alpha": 0.5}, ["penalty_alpha"]),
        ({"forced_bos_token_id": 0}, ["forced_bos_token_id"]),
        ({"num_assistant_tokens_schedule": "heuristic_transient"}, ["num_assistant_tokens_schedule"]),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, values: dict[str, Any], left: list[str]) -> None:
    found, named = told(tmp_path, **values)
    assert named == left
    assert found == {name: value for name, value in values.items() if name not in left}


@pytest.mark.parametrize(
    "values",
    [{"max_length": -1}, {"bad_words_ids": [1]}, {"num_beams": "4"}, {"stop_strings": [""]}, {"suppress_tokens": [-1]}],
)
def test_values_that_cannot_be_end_the_start(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        told(tmp_path, **values)


def test_a_file_that_is_nested_too_deeply_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ModelError, match=r"generation_config\.json is nested too deeply"):
        recommended(tmp_path)


async def test_a_summary_model_searches_as_its_makers_do(served: Served, tmp_path: Path) -> None:
    plain = await request(served, tmp_path, BART)
    num_prompt = len(plain.prompt_ids)
    assert plain.strategy == Beam(num_beams=4, length_penalty=2.0, early_stopping=True)
    assert (plain.stopping.max_tokens, plain.stopping.min_tokens) == (20 - num_prompt, 8 - num_prompt)
    assert (plain.logits.no_repeat_ngram_size, plain.logits.forced_eos_token_ids) == (3, (2,))
    own = await request(served, tmp_path, BART, num_beams=2, max_tokens=1, early_stopping=False)
    assert own.strategy == Beam(num_beams=2, length_penalty=2.0)
    assert (own.stopping.max_tokens, own.stopping.min_tokens) == (1, 1)


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.7}, {"temperature": 0}, {"top_p": 0.5}, {"do_sample": True}, {"n": 5}, {"best_of": 3}]
)
async def test_a_request_that_says_how_it_draws_gets_no_beams(
    served: Served, tmp_path: Path, asked: dict[str, Any]
) -> None:
    own = await request(served, tmp_path, BART, **asked)
    name = own.strategy.NAME
    assert name == ("best_of" if "best_of" in asked else "sampling")
    assert own.logits.no_repeat_ngram_size == 3


@pytest.mark.parametrize(
    ("values", "strategy"),
    [
        ({"num_beams": 2, "do_sample": True, "top_k": 5}, BeamSample(num_beams=2)),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.0},
            GroupBeam(num_beams=4, num_beam_groups=2, diversity_penalty=0.0),
        ),
        ({"penalty_alpha": 0.6, "top_k": 4}, Contrastive(penalty_alpha=0.6, k=4)),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False, "top_p": 0.5}, Contrastive(penalty_alpha=0.6, k=4)),
    ],
)
async def test_strategies_are_taken_whole(served: Served, tmp_path: Path, values: Any, strategy: object) -> None:
    assert (await request(served, tmp_path, values)).strategy == strategy


async def test_greedy_is_a_recommendation_too(served: Served, tmp_path: Path) -> None:
    values = {"do_sample": False, "temperature": 0.6, "top_p": 0.5}
    assert (await request(served, tmp_path, values)).logits.is_greedy
    drawn = await request(served, tmp_path, values, temperature=0.9)
    assert (drawn.logits.temperature, drawn.logits.top_p) == (0.9, 1.0)


async def test_lengths_give_way(served: Served, tmp_path: Path) -> None:
    long = await request(served, tmp_path, {"max_new_tokens": 10**6, "max_length": 1})
    assert long.stopping.max_tokens == served.max_model_len - len(long.prompt_ids)
    short = await request(served, tmp_path, {"max_length": 2, "min_new_tokens": 10})
    assert (short.stopping.max_tokens, short.stopping.min_tokens) == (16, 10)
    form = await request(served, tmp_path, {"min_new_tokens": 10}, response_format={"type": "json_object"})
    assert form.stopping.min_tokens == 0


async def test_words_that_are_never_said_are_the_model_s(served: Served, tmp_path: Path) -> None:
    values = {"bad_words_ids": [[3, 4], [], [10**6]], "suppress_tokens": [5], "stop_strings": "end"}
    own = await request(served, tmp_path, values)
    assert own.logits.bad_words == ((3, 4), (5,))
    assert own.stopping.stop == (b"end",)


async def test_a_chat_has_the_model_s_length(tmp_path: Path) -> None:
    served = replace(make_served(), generation_defaults=told(tmp_path, max_new_tokens=7, min_new_tokens=3)[0])
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    plan = await chat_plan(asked_of(ChatRequest.model_validate(chat)), served)
    assert (plan.requests[0].stopping.max_tokens, plan.requests[0].stopping.min_tokens) == (7, 3)
    served.grammars.close()
