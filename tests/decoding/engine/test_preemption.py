"""Preemption in the middle of everything: every strategy, alone with an engine that takes its pages again and again."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.engine.engine import Engine
from decoding.seam import Feed, Move, Observation, Strategy, Tools
from decoding.stopping import Stopping
from decoding.strategies import build
from tests.decoding.crowd import DraftTableModel, crowd_token_bytes, random_requests
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.table_oracle import logprob_error, table_logprobs
from tests.decoding.table_model import TableModel, table_engine

VOCAB = 40


def make(**options: int) -> Engine:
    models = {"main": TableModel(vocab=VOCAB, num_pages=200), "draft": DraftTableModel(num_pages=200)}
    return table_engine(models=models, eos=(3,), token_bytes=crowd_token_bytes(VOCAB), **options)


class Counted:
    """A strategy that is shown each position it asked for, and once."""

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        self._strategy: Strategy = build(request, stopping, tools)
        self._move = Move()

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        self._move = self._strategy.begin(prompt_ids)
        return self._move

    def step(self, seen: Observation) -> Move:
        assert [len(row.readings) for row in seen.rows] == [num_wanted(feed) for feed in self._move.feeds]
        assert all(
            [r.position for r in row.readings] == sorted({r.position for r in row.readings}) for row in seen.rows
        )
        self._move = self._strategy.step(seen)
        return self._move


def num_wanted(feed: Feed) -> int:
    num_fed = len(feed.tokens) if feed.embeds is None else len(feed.embeds)
    return (not feed.want.is_empty) + (0 if feed.inner.is_empty else num_fed - 1)


def run_preempted(engine: Engine, request: Request, rng: random.Random) -> Answer:
    answer = Answer()
    engine.add(0, request, Counted)
    while engine.has_work:
        for output in engine.tick():
            answer.take(output)
        if rng.random() < 0.4:
            engine.scheduler.give_way(list(engine.scheduler.running))
        engine.check_integrity()
    assert engine.used_pages == 0
    return answer


def test_every_strategy_preempted_at_any_moment_says_the_same() -> None:
    rng = random.Random(2)
    num_preemptions = 0
    for request in random_requests(rng, 48, VOCAB):
        (undisturbed,) = run(make(), [request])
        preempted = run_preempted(make(tick_tokens=16), request, rng)
        assert preempted.said == undisturbed.said, f"differs: {request}"
        assert preempted.usage is not None
        num_preemptions += preempted.usage.preemptions
    assert num_preemptions > 200


def test_what_is_preempted_while_a_tick_is_planned_is_no_part_of_it() -> None:
    """Neither its spans nor its page copies, whose target may be another row's page by now."""
    requests = [Request((1, 2, i), Sampling(2), LogitsParams(0), StoppingParams(30, ignore_eos=True)) for i in range(4)]
    requests += [Request((i,) * 60, Sampling(), LogitsParams(0), StoppingParams(4), priority=-1) for i in range(8)]
    engine = table_engine(num_pages=34, tick_tokens=8, max_rows=24)
    for index, request in enumerate(requests):
        engine.add(index, request, build)
    while engine.has_work:
        before = engine.computed_tokens
        engine.tick()
        assert engine.tick_tokens == engine.computed_tokens - before
    assert engine.scheduler.counters.preemptions > 0


def test_a_prompt_that_is_scored_and_preempted_in_its_middle_is_scored_once() -> None:
    rng = random.Random(4)
    prompt = tuple(rng.randrange(VOCAB) for _ in range(400))
    stopping, logprobs = StoppingParams(3), LogprobsParams(1, 2)
    request = Request(prompt, Sampling(), LogitsParams(0), stopping, logprobs)
    (undisturbed,) = run(make(), [request])
    preempted = run_preempted(make(tick_tokens=64), request, rng)
    assert preempted.usage is not None
    assert preempted.usage.preemptions > 1
    assert preempted.said == undisturbed.said
    assert preempted.prompt is not None
    expected = [float(table_logprobs(prompt[:t])[prompt[t]]) for t in range(1, len(prompt))]
    assert preempted.prompt.logprobs[1:] == pytest.approx(expected, abs=logprob_error())
