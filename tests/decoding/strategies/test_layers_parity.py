"""The five strategies of this chapter in a crowd: what each says there is what it says alone, traces included."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from decoding.contract.params import (
    DRAFT,
    Contrastive,
    Dola,
    Entropix,
    Guided,
    KlGuided,
    LogitsParams,
    Request,
    StrategyParams,
)
from decoding.engine.engine import Engine
from decoding.strategies.parts.hidden_bank import HiddenBank
from tests.decoding.crowd import random_requests, run_crowd
from tests.decoding.drive import run
from tests.decoding.table_model import table_engine

VOCAB = 40


def some_strategy(rng: random.Random) -> StrategyParams:
    context = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, 50)))
    entropix = Entropix(
        rng.choice([None, 5]),
        compat=rng.random() < 0.3,
        uses_attention=rng.random() < 0.7,
        low_varentropy=0.8,
        medium_entropy=2.0,
        high_entropy=3.5,
        high_varentropy=1.0,
    )
    strategies: list[StrategyParams] = [
        Contrastive(rng.choice([0.0, 0.3, 0.8]), rng.randrange(1, 6)),
        Dola(rng.choice([(0,), (3, 1), (0, 2, 4)]), rng.randrange(1, 4)),
        Guided(rng.choice([0.5, 1.5, 3.0]), context, rng.randrange(1, 3)),
        KlGuided(rng.choice([0.5, 4.0]), context, rng.randrange(1, 3)),
        entropix,
    ]
    return rng.choice(strategies)


def crowd_of(seed: int, count: int) -> list[Request]:
    """Three in four are of this chapter; a few of them pause before they speak."""
    rng = random.Random(seed)
    requests = random_requests(rng, count, VOCAB)
    return [
        layered(rng, request) if rng.random() < 0.75 or DRAFT in request.max_rows_in else request
        for request in requests
    ]


def layered(rng: random.Random, request: Request) -> Request:
    pauses = rng.choice([(), (), (7, 7, 7)])
    request = dataclasses.replace(request, strategy=some_strategy(rng), pause_ids=pauses, trace=True)
    if not isinstance(request.strategy, Dola):
        return request
    # DoLa leaves few tokens: a mask may forbid all of them, which ends the request
    logits = dataclasses.replace(request.logits, allowed_token_ids=None)
    return dataclasses.replace(request, logits=logits, stopping=dataclasses.replace(request.stopping, min_tokens=0))


def engine(num_pages: int) -> Engine:
    return table_engine(num_pages=num_pages, eos=(3,), max_rows=24, tick_tokens=48)


def assert_parity(requests: list[Request], seed: int) -> Engine:
    crowded = engine(60)
    for index, answer in run_crowd(crowded, requests, random.Random(seed)).items():
        (alone,) = run(engine(400), [requests[index]])
        assert answer.failure is None, answer.failure
        assert (answer.said, answer.trace) == (alone.said, alone.trace), f"request {index} differs: {requests[index]}"
    return crowded


def test_60_requests_in_a_crowd_answer_as_they_do_alone() -> None:
    crowded = assert_parity(crowd_of(2, 60), seed=2)
    assert crowded.scheduler.counters.preemptions > 10


def test_a_bank_that_misses_a_position_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate breakage: the bank forgets what it holds when it grows, as if it were rebuilt from the cache."""
    request = Request((1, 2, 3, 4), Contrastive(0.8, 5), LogitsParams(0))
    (whole,) = run(engine(400), [request])
    keep = HiddenBank.extend

    def forget(bank: HiddenBank, units: torch.Tensor) -> None:
        keep(bank, units[-1:])

    monkeypatch.setattr(HiddenBank, "extend", forget)
    (holey,) = run(engine(400), [request])
    assert holey.tokens() != whole.tokens()
