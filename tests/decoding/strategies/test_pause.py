"""Pause tokens: every strategy decodes as after prompt + pauses, and nothing but the model sees them."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from transformers import PreTrainedModel

from decoding.contract.params import (
    BestOf,
    CotDecoding,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    Sed,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.cache import PageCache
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.strategies.branching import assert_same_in_a_crowd, changed
from tests.decoding.tiny import tiny

PROMPT = (5, 17, 3, 60, 41, 8)
PAUSES = (90,) * 7
GREEDY = LogitsParams(temperature=0)
STRATEGIES: list[StrategyParams] = [
    Sampling(2),
    BestOf(1, 3),
    CotDecoding(k=3, n=3, suffix_ids=(33, 34), max_answer=3),
    Sed(eval_ids=(50, 51), yes_id=60, no_id=61, delta_ratio=0.3, max_rollout=5),
]


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def llama() -> Model:
    model = wrap(tiny("llama"))
    model.attention.allocate(200)
    return model


def answer(model: Model, request: Request) -> Answer:
    caches = {"main": PageCache(200, model.attention.page_size)}
    return run(make_engine({"main": model}, caches, eos_token_ids=(2,)), [request])[0]


def ask(strategy: StrategyParams, logits: LogitsParams = GREEDY) -> Request:
    return Request(PROMPT, strategy, logits, StoppingParams(10), LogprobsParams(0), seed=7, pause_ids=PAUSES)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.NAME)
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_without_penalties_they_are_a_longer_prompt(llama: Model, strategy: StrategyParams, temperature: float) -> None:
    paused = ask(strategy, LogitsParams(temperature))
    longer = changed(paused, prompt_ids=PROMPT + PAUSES, pause_ids=())
    assert answer(llama, paused).said == answer(llama, longer).said
    assert answer(llama, paused).said != answer(llama, changed(paused, pause_ids=())).said


def test_greedy_after_pauses_is_generate_after_prompt_and_pauses(llama: Model, reference: PreTrainedModel) -> None:
    generated = reference.generate(  # type: ignore[operator]
        torch.tensor([PROMPT + PAUSES]), do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0
    )
    tokens = generated[0, len(PROMPT + PAUSES) :].tolist()
    assert answer(llama, ask(Sampling())).tokens() == tokens


@torch.no_grad()
def test_penalties_do_not_see_them(llama: Model, reference: PreTrainedModel) -> None:
    """Against a loop over the bare model that penalises prompt and output alone; every other token is a pause."""
    pauses = tuple(range(0, 96, 2))
    request = changed(ask(Sampling(), LogitsParams(0, repetition_penalty=1.8)), pause_ids=pauses)
    output: list[int] = []
    for _ in range(10):
        z = reference(torch.tensor([[*PROMPT, *pauses, *output]])).logits[0, -1]
        seen = sorted({*PROMPT, *output})
        z[seen] = torch.where(z[seen] < 0, z[seen] * 1.8, z[seen] / 1.8)
        output.append(int(z.argmax()))
    assert answer(llama, request).tokens() == output
    assert answer(llama, changed(request, prompt_ids=PROMPT + pauses, pause_ids=())).tokens() != output


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.NAME)
def test_the_prompts_scores_are_those_without_pauses(llama: Model, strategy: StrategyParams) -> None:
    scored = changed(ask(strategy), logprobs=LogprobsParams(0, prompt=2))
    with_pauses, without = answer(llama, scored).prompt, answer(llama, changed(scored, pause_ids=())).prompt
    assert with_pauses is not None
    assert with_pauses == without
    assert len(with_pauses.logprobs) == len(PROMPT)


def test_a_prompt_of_one_token_with_pauses_has_no_scores_to_tell(llama: Model) -> None:
    scored = changed(ask(Sampling()), prompt_ids=(5,), logprobs=LogprobsParams(0, prompt=1))
    prompt = answer(llama, scored).prompt
    assert prompt is not None
    assert prompt.logprobs == (None,)
    assert prompt.top == ((),)


def test_they_count_as_work_and_in_the_length_but_not_as_cached_prompt(llama: Model) -> None:
    many = changed(ask(Sampling()), pause_ids=(90,) * 60)
    assert many.max_length == len(PROMPT) + 60 + 9
    caches = {"main": PageCache(200, llama.attention.page_size)}
    engine = make_engine({"main": llama}, caches, eos_token_ids=(2,))
    first, again = (run(engine, [many])[0].usage for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.computed_tokens >= len(PROMPT) + 60
    assert again.computed_tokens < first.computed_tokens
    assert again.cached_tokens <= len(PROMPT)


def draw(rng: random.Random, request: Request) -> Request:
    return dataclasses.replace(request, pause_ids=(rng.randrange(40),) * rng.randrange(1, 30))


def test_in_a_crowd_they_change_nothing_for_anybody() -> None:
    assert_same_in_a_crowd(draw, seed=51)
