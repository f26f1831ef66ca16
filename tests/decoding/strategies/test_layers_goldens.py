"""Contrastive search, DoLa, guidance and KL-guided temperature equal `tests/goldens/layers.json`.

Alone, and all in one batch with sampling neighbours over a page pool that is much too small.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.contract.params import (
    Contrastive,
    Dola,
    Entropix,
    Guided,
    KlGuided,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.contract.params.dola import premature_layers
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.rounding_error import of_divergence, of_model
from tests.goldens.tiny import TinySpec, build, weights_sha256

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "layers.json").read_text(encoding="utf-8"))
ENTRIES = {entry["model_type"]: entry for entry in GOLDENS["models"]}
METHODS = ("contrastive", "dola", "guided", "kl_guided")
NEW_TOKENS = GOLDENS["max_new_tokens"]
NUM_PAGES = 400


def spec_of(model_type: str) -> TinySpec:
    entry = ENTRIES[model_type]
    return TinySpec(model_type, entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))


@cache
def logits_error(model_type: str) -> float:
    """Of the model over the longest recorded text; ours and the recorded ones are both rounded."""
    texts = (run["prompt_token_ids"] + run["token_ids"] for run in ENTRIES[model_type]["kl_guided"])
    ids = torch.tensor([max(texts, key=len)])
    return 2 * of_model(build(spec_of(model_type)), lambda lm: lm(ids).logits)


@cache
def model_of(model_type: str) -> Model:
    built = build(spec_of(model_type))
    assert weights_sha256(built) == ENTRIES[model_type]["weights_sha256"]
    model = wrap(built)
    model.attention.allocate(NUM_PAGES)
    return model


def engine(model_type: str, num_pages: int = NUM_PAGES) -> Engine:
    model = model_of(model_type)
    caches = {"main": PageCache(num_pages, model.attention.page_size)}
    eos = ENTRIES[model_type]["eos_token_ids"]
    return make_engine({"main": model}, caches, eos_token_ids=eos, max_rows=64, tick_tokens=64)


def strategy(method: str, run: dict[str, Any]) -> StrategyParams:
    match method:
        case "contrastive":
            return Contrastive(run["penalty_alpha"], run["top_k"])
        case "dola":
            which = run["dola_layers"]
            return Dola(tuple(run["layers"] if isinstance(which, str) else which))
        case "guided":
            return Guided(run["guidance_scale"], tuple(run["negative_ids"]))
    return KlGuided(run["sigma"], tuple(run["context_ids"]))


def request(method: str, run: dict[str, Any]) -> Request:
    """KL-guided ones sample from one token, so that T is what it would be and the path the recorded one."""
    is_sampled = method == "kl_guided"
    return Request(
        tuple(run["prompt_token_ids"]),
        strategy(method, run),
        LogitsParams(
            temperature=run["temperature"] if is_sampled else 0,
            top_k=1 if is_sampled else 0,
            repetition_penalty=run.get("repetition_penalty", 1.0),
        ),
        StoppingParams(NEW_TOKENS, min_tokens=run.get("min_new_tokens", 0)),
        trace=True,
    )


def neighbours() -> list[Request]:
    """Sampling, of all lengths, with n; and entropix."""
    hot = LogitsParams(1.2, top_p=0.9, repetition_penalty=1.1)
    sampling = [
        Request(tuple(range(3, 9 + 7 * i)), Sampling(1 + i % 3), hot, StoppingParams(24), LogprobsParams(2), seed=i)
        for i in range(5)
    ]
    return [*sampling, Request(tuple(range(20, 50)), Entropix(), stopping=StoppingParams(24), seed=9)]


def finish(answer: Answer) -> str:
    reason = answer.choices[0].finish
    assert reason is not None
    return reason.reason.value


def assert_recorded(answer: Answer, model_type: str, method: str, recorded: dict[str, Any]) -> None:
    assert answer.tokens() == recorded["token_ids"], (method, recorded)
    assert finish(answer) == recorded["finish_reason"]
    if method == "dola":
        assert [event.values["layer"] for event in answer.trace] == recorded["chosen_layers"]
    if method == "kl_guided":
        for event, divergence, t in zip(answer.trace, recorded["divergences"], recorded["temperatures"], strict=True):
            error = of_divergence(divergence, logits_error(model_type))
            assert event.values["divergence"] == pytest.approx(divergence, abs=error)
            assert event.values["temperature"] == pytest.approx(t, rel=math.log(2) / recorded["sigma"] * error)


@pytest.mark.parametrize("model_type", ENTRIES)
def test_each_method_is_token_identical_alone(model_type: str) -> None:
    """The first prompt of every variant; the others are in the batch below."""
    for method in METHODS:
        for recorded in ENTRIES[model_type][method][::3]:
            (answer,) = run(engine(model_type), [request(method, recorded)])
            assert_recorded(answer, model_type, method, recorded)


@pytest.mark.parametrize("model_type", ENTRIES)
def test_all_methods_are_token_identical_in_one_batch(model_type: str) -> None:
    cases = [(m, r) for m in METHODS for r in ENTRIES[model_type][m]]
    others = neighbours()
    crowded = engine(model_type, num_pages=28)
    answers = run(crowded, [*others, *(request(m, r) for m, r in cases)])
    assert crowded.scheduler.counters.preemptions > 5
    alone = [run(engine(model_type), [other])[0] for other in others]
    assert [a.said for a in answers[: len(others)]] == [a.said for a in alone]
    for answer, (method, recorded) in zip(answers[len(others) :], cases, strict=True):
        assert_recorded(answer, model_type, method, recorded)


def test_the_recorded_layers_do_vary() -> None:
    picked = [r["chosen_layers"] for e in ENTRIES.values() for r in e["dola"] if len(r["layers"]) > 1]
    assert any(len(set(layers)) > 1 for layers in picked)


def test_low_and_high_are_the_layers_that_transformers_takes() -> None:
    for case in GOLDENS["premature_layers"]:
        depth, is_tied = case["num_layers"], case["is_tied"]
        assert list(premature_layers("low", depth, is_tied=is_tied)) == (case["low"] or []), case
        assert list(premature_layers("high", depth, is_tied=is_tied)) == (case["high"] or []), case
