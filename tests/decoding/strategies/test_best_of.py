"""best_of equals n = best_of followed by ranking outside the engine."""

from __future__ import annotations

import dataclasses

import pytest

from decoding.contract.params import BestOf, LogitsParams, LogprobsParams, RankBy, Request, Sampling, StoppingParams
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.table_model import table_engine

EOS = tuple(range(0, 40, 6))
REQUEST = Request((3, 1, 4, 1, 5), Sampling(6), LogitsParams(1.3), StoppingParams(10), LogprobsParams(0), seed=21)


def answer(request: Request) -> Answer:
    return run(table_engine(eos=EOS), [request])[0]


@pytest.mark.parametrize("rank_by", ["mean", "sum"])
def test_it_returns_the_n_best_of_the_same_samples(rank_by: RankBy) -> None:
    samples = answer(REQUEST).choices.values()
    assert len({len(c.token_ids) for c in samples}) > 1

    def score(logprobs: list[float]) -> float:
        return sum(logprobs) / (len(logprobs) if rank_by == "mean" else 1)

    expected = sorted(samples, key=lambda c: -score(c.logprobs))[:2]
    got = answer(dataclasses.replace(REQUEST, strategy=BestOf(2, 6, rank_by)))
    assert [got.tokens(i) for i in range(2)] == [c.token_ids for c in expected]
    assert [got.choices[i].logprobs for i in range(2)] == [c.logprobs for c in expected]
    finish = got.choices[0].finish
    assert finish is not None
    assert finish.score == pytest.approx(score(expected[0].logprobs))


def test_mean_and_sum_can_disagree() -> None:
    def best(rank_by: RankBy, seed: int) -> list[int]:
        return answer(dataclasses.replace(REQUEST, strategy=BestOf(1, 6, rank_by), seed=seed)).tokens()

    assert any(best("mean", seed) != best("sum", seed) for seed in range(30))


def test_ranking_is_by_raw_logprobs_whatever_is_reported() -> None:
    raw = answer(dataclasses.replace(REQUEST, strategy=BestOf(1, 6)))
    processed = dataclasses.replace(REQUEST, strategy=BestOf(1, 6), logprobs=LogprobsParams(0, mode="processed"))
    silent = dataclasses.replace(REQUEST, strategy=BestOf(1, 6), logprobs=LogprobsParams())
    assert answer(processed).tokens() == raw.tokens() == answer(silent).tokens()
    assert answer(silent).choices[0].logprobs == []


def test_nothing_is_committed_before_the_last_sample_is_over() -> None:
    engine = table_engine(eos=EOS)
    engine.add(0, dataclasses.replace(REQUEST, strategy=BestOf(1, 6)), build)
    ticks = []
    while engine.has_work:
        ticks.append(engine.tick())
    assert not [o for outputs in ticks[:-1] for o in outputs if o.emits]
    assert len(ticks[-1][0].emits) == 1


def test_a_trace_tells_the_draws_and_the_ranking() -> None:
    request = dataclasses.replace(REQUEST, strategy=BestOf(2, 6))
    traced = answer(dataclasses.replace(request, trace=True))
    assert traced.said == answer(request).said
    assert not answer(request).trace
    assert {event.values["choice"] for event in traced.trace if event.kind == "draw"} == set(range(6))
    ranking: list[dict[str, float]] = traced.trace[-1].values["ranking"]  # type: ignore[assignment]
    scores = [entry["score"] for entry in ranking]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["sample"] for entry in ranking) == list(range(6))
    assert [c.finish.score for c in traced.choices.values() if c.finish] == scores[:2]
