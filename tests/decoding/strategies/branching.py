"""The world of the branching strategies' tests: the goldens of `branches.json`, and mixed batches over few pages."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from decoding.contract.params import BestOf, Request, Sampling
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.crowd import random_requests, run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.rounding_error import of_model
from tests.decoding.table_model import table_engine
from tests.goldens.tiny import TinySpec, build, weights_sha256

RECORDED = json.loads((Path(__file__).parents[2] / "goldens" / "branches.json").read_text(encoding="utf-8"))
TOKEN_BYTES = tuple(text.encode() for text in RECORDED["token_text"])
MAX_TOKENS = RECORDED["max_new_tokens"]
FEW_PAGES = 22


def bare(index: int) -> PreTrainedModel:
    entry = RECORDED["cot_decoding"][index]
    spec = TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))
    built: PreTrainedModel = build(spec)
    assert weights_sha256(built) == entry["weights_sha256"]
    return built


@cache
def probability_error(index: int) -> float:
    """Of the model over the longest recorded text: the recorded one and ours are both rounded, that to 7 decimals."""
    cases = [case for run in RECORDED["cot_decoding"][index]["runs"] for case in run["cases"]]
    texts = (case["prompt_token_ids"] + branch["token_ids"] for case in cases for branch in case["branches"])
    ids = torch.tensor([max(texts, key=len)])
    return 2 * of_model(bare(index), lambda lm: lm(ids).logits.softmax(-1)) + 5e-8


@cache
def golden_model(index: int) -> Model:
    model = wrap(bare(index))
    model.attention.allocate(400)
    return model


def golden_engine(index: int, num_pages: int = 400) -> Engine:
    model, eos = golden_model(index), RECORDED["cot_decoding"][index]["eos_token_ids"]
    caches = {"main": PageCache(num_pages, model.attention.page_size)}
    return make_engine({"main": model}, caches, eos_token_ids=eos, token_bytes=TOKEN_BYTES, max_rows=40)


def sampling_requests(rng: random.Random, count: int, vocab: int) -> list[Request]:
    """Those of the crowd's random requests that sample, in as many ways."""
    drawn = random_requests(rng, count * 20, vocab, longest=20)
    return [request for request in drawn if isinstance(request.strategy, Sampling | BestOf)][:count]


def answers_among_neighbours(index: int, requests: list[Request]) -> list[Answer]:
    """The requests' answers from one batch with sampling neighbours, over so few pages that they lose them again."""
    neighbours = sampling_requests(random.Random(index), len(requests), 96)
    mixed = [request for pair in zip(requests, neighbours, strict=True) for request in pair]
    engine = golden_engine(index, FEW_PAGES)
    answers = run(engine, mixed)
    assert engine.scheduler.counters.preemptions > 0
    return answers[::2]


def assert_same_in_a_crowd(draw: Callable[[random.Random, Request], Request], seed: int, num_pages: int = 60) -> None:
    """Random requests, two in three changed by `draw`, arrive, leave and lose their pages: each says what it says
    alone."""

    def make(num_pages: int) -> Engine:
        letters = tuple(b"0123456789 .abcdefghijklmnopqrstuvwxyz\n,$"[i : i + 1] for i in range(40))
        return table_engine(num_pages=num_pages, eos=(3,), max_rows=24, tick_tokens=48, token_bytes=letters)

    rng = random.Random(seed)
    plain = sampling_requests(rng, 24, 40)
    requests = [draw(rng, request) if i % 3 else request for i, request in enumerate(plain)]
    solo = [run(make(300), [request])[0] for request in requests]
    crowded = make(num_pages)
    for index, answer in run_crowd(crowded, requests, random.Random(seed)).items():
        assert answer.failure is None
        assert answer.said == solo[index].said, f"request {index} differs: {requests[index]}"
    assert crowded.scheduler.counters.preemptions > 3


def changed(request: Request, **changes: Any) -> Request:
    return dataclasses.replace(request, **changes)
