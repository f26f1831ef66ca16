"""The four beam searches answer in a crowd as they do alone, to the last bit of each log-prob."""

from __future__ import annotations

import dataclasses
import random

from decoding.contract.params import Beam, BeamSample, BestFirst, GroupBeam, Request, Sampling, StrategyParams
from decoding.engine.engine import Engine
from tests.decoding.crowd import random_requests, run_crowd
from tests.decoding.drive import run
from tests.decoding.table_model import table_engine

VOCAB = 40


def engine(num_pages: int) -> Engine:
    return table_engine(num_pages=num_pages, eos=(3, 17), max_rows=40, tick_tokens=48)


def beams(rng: random.Random) -> StrategyParams:
    num_beams = rng.randrange(1, 7)
    n, alpha, early = rng.randrange(1, num_beams + 1), rng.choice([1.0, 0.0, 0.6, -0.5]), rng.choice([0, 1, 2])
    stopping = (False, True, "never")[early]
    kind = rng.randrange(4)
    if kind == 0:
        coverage, prune = rng.choice([0.0, 0.0, 0.3]), rng.choice([None, None, 1.5])
        return Beam(n, num_beams, alpha, rng.choice(["hf", "gnmt"]), coverage, stopping, prune)  # type: ignore[arg-type]
    if kind == 1:
        return BeamSample(n, num_beams, alpha, early_stopping=stopping)  # type: ignore[arg-type]
    if kind == 2:
        groups = rng.choice([g for g in range(1, num_beams + 1) if num_beams % g == 0])
        return GroupBeam(n, num_beams, groups, rng.choice([0.3, 2.0]), alpha, stopping)  # type: ignore[arg-type]
    return BestFirst(n, num_beams, alpha)


def crowd(seed: int, count: int) -> list[Request]:
    """Three of four search, the others sample."""
    rng = random.Random(seed)
    return [
        dataclasses.replace(request, strategy=Sampling() if rng.random() < 0.25 else beams(rng), trace=True)
        for request in random_requests(rng, count, VOCAB, longest=30)
    ]


def test_searches_in_a_crowd_answer_as_they_do_alone() -> None:
    requests = crowd(2, 80)
    crowded = engine(60)
    answers = run_crowd(crowded, requests, random.Random(3))
    assert crowded.scheduler.counters.preemptions > 10
    assert len(answers) > 60
    for index, answer in answers.items():
        (alone,) = run(engine(300), [requests[index]])
        assert answer.said == alone.said, f"request {index} differs: {requests[index]}"
    failures = [answer.failure.code for answer in answers.values() if answer.failure is not None]
    assert failures in ([], ["nothing_to_draw"]), "masks can leave a search too few answers; nothing else may go wrong"
