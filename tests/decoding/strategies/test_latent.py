"""Latent thoughts equal `tests/goldens/latent.json`, before any strategy, alone and in a crowd that loses its pages."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from decoding.contract.params import (
    Assisted,
    Beam,
    BestOf,
    Contrastive,
    InvalidParam,
    LatentThoughts,
    LogitsParams,
    LogprobsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.rows import EMBED_ID
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.strategies.branching import assert_same_in_a_crowd, changed, sampling_requests
from tests.goldens.tiny import TinySpec, build, weights_sha256

RECORDED = json.loads((Path(__file__).parents[2] / "goldens" / "latent.json").read_text(encoding="utf-8"))
START, END, MAX_TOKENS = RECORDED["start_id"], RECORDED["end_id"], RECORDED["max_new_tokens"]
GREEDY = LogitsParams(temperature=0)
ALIKE: list[StrategyParams] = [Sampling(), BestOf(1, 2), Contrastive(0.0, 3), PromptLookup(4), Beam(1, 1)]
"""Strategies that all say what greedy decoding says."""


@cache
def model_of(index: int) -> Model:
    entry = RECORDED["models"][index]
    bare = build(TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"])))
    assert weights_sha256(bare) == entry["weights_sha256"]
    model = wrap(bare)
    model.attention.allocate(300)
    return model


def engine(index: int, num_pages: int = 300) -> Engine:
    model, eos = model_of(index), RECORDED["models"][index]["eos_token_ids"]
    return make_engine(
        {"main": model}, {"main": PageCache(num_pages, model.attention.page_size)}, eos_token_ids=eos, max_rows=40
    )


def request(case: dict[str, Any], strategy: StrategyParams | None = None) -> Request:
    latent = LatentThoughts(case["count"], START, END)
    stopping = StoppingParams(MAX_TOKENS)
    return Request(tuple(case["prompt_token_ids"]), strategy or Sampling(), GREEDY, stopping, latent=latent)


def assert_golden(answer: Answer, case: dict[str, Any]) -> None:
    assert answer.failure is None
    assert answer.tokens() == case["token_ids"]


@pytest.mark.parametrize("index", [0, 1])
def test_it_equals_a_loop_over_whole_forwards(index: int) -> None:
    for case in RECORDED["models"][index]["runs"]:
        assert_golden(run(engine(index), [request(case)])[0], case)


@pytest.mark.parametrize("index", [0, 1])
def test_it_equals_the_loop_among_neighbours_over_too_few_pages(index: int) -> None:
    cases = RECORDED["models"][index]["runs"]
    neighbours = sampling_requests(random.Random(index), len(cases), 96)
    mixed = [each for pair in zip([request(c) for c in cases], neighbours, strict=True) for each in pair]
    crowded = engine(index, 22)
    for answer, case in zip(run(crowded, mixed)[::2], cases, strict=True):
        assert_golden(answer, case)
    assert crowded.scheduler.counters.preemptions > 0


@pytest.mark.parametrize("strategy", ALIKE, ids=lambda s: s.NAME)
def test_every_strategy_decodes_behind_the_thoughts(strategy: StrategyParams) -> None:
    for case in RECORDED["models"][1]["runs"][::3]:
        assert_golden(run(engine(1), [request(case, strategy)])[0], case)


def test_a_draft_without_the_thoughts_changes_no_token() -> None:
    main, page_size = model_of(1), model_of(1).attention.page_size
    draft = wrap(build(TinySpec("llama", RECORDED["models"][1]["config"], 5, (2,))))
    draft.attention.allocate(100)
    for case in RECORDED["models"][1]["runs"][::3]:
        caches = {"main": PageCache(300, page_size), "draft": PageCache(100, page_size)}
        both = make_engine({"main": main, "draft": draft}, caches, eos_token_ids=(2,))
        (answer,) = run(both, [request(case, Assisted(num_tokens=3))])
        assert_golden(answer, case)
        assert answer.usage is not None
        assert answer.usage.drafted > 0


@pytest.mark.parametrize("strategy", [Sampling(2), Beam(2, 2), Contrastive(0.6, 3)], ids=lambda s: s.NAME)
def test_the_prompts_scores_are_those_without_thoughts(strategy: StrategyParams) -> None:
    asked = changed(request(RECORDED["models"][1]["runs"][6], strategy), logprobs=LogprobsParams(0, prompt=2))
    with_thoughts = run(engine(1), [asked])[0].prompt
    assert with_thoughts is not None
    assert with_thoughts == run(engine(1), [changed(asked, latent=None)])[0].prompt


@pytest.mark.parametrize("place", ["thoughts", "start", "end", "pause"])
def test_no_penalty_sees_the_thoughts_or_the_tokens_around_them(place: str) -> None:
    """A request that may say one token only, and nothing twice: it says the token unless it has been counted before."""
    case = RECORDED["models"][1]["runs"][0]
    token = EMBED_ID if place == "thoughts" else 7
    assert token not in (START, END, *case["prompt_token_ids"])
    ends = (token if place == "start" else START, token if place == "end" else END)
    once = LogitsParams(0, no_repeat_ngram_size=1, allowed_token_ids=(token,))
    asked = changed(request(case), latent=LatentThoughts(2, *ends), logits=once, stopping=StoppingParams(1))
    paused = changed(asked, pause_ids=(token,) if place == "pause" else ())
    counted = changed(asked, prompt_ids=(*asked.prompt_ids, token))
    answer, refused = run(engine(1), [paused, counted])
    assert answer.failure is None
    assert answer.tokens() == [token]
    assert refused.failure is not None


def test_cached_prompts_end_before_the_thoughts() -> None:
    """The same prompt with other thoughts, then without: what is cached of it is the prompt's own."""
    case = RECORDED["models"][1]["runs"][3]
    shared = engine(1)
    (first,) = run(shared, [request(case)])
    (other,) = run(shared, [changed(request(case), latent=LatentThoughts(2, START, END))])
    (again,) = run(shared, [request(case)])
    (plain,) = run(shared, [changed(request(case), latent=None)])
    assert_golden(first, case)
    assert_golden(again, case)
    assert again.usage is not None
    assert again.usage.cached_tokens > 0
    assert plain.said == run(engine(1), [changed(request(case), latent=None)])[0].said
    alone = changed(request(case), latent=LatentThoughts(2, START, END))
    assert other.said == run(engine(1), [alone])[0].said


def test_they_count_in_the_length() -> None:
    asked = Request((1, 2, 3), stopping=StoppingParams(10), latent=LatentThoughts(5, 7, 8))
    assert asked.max_length == 3 + 7 + 9
    assert asked.highest_token_id == 8


@pytest.mark.parametrize("wrong", [(0, 1, 1), (5000, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_senseless_thoughts_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidParam, match="latent_thoughts"):
        LatentThoughts(*wrong)


def draw(rng: random.Random, drawn: Request) -> Request:
    return changed(drawn, latent=LatentThoughts(rng.randrange(1, 20), rng.randrange(40), rng.randrange(40)))


def test_in_a_crowd_they_change_nothing_for_anybody() -> None:
    assert_same_in_a_crowd(draw, seed=61)
