"""What a tick does: who runs, who waits, who leaves, and what it costs. Exactness is shown in test_parity."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.engine.engine import Engine
from decoding.engine.output import Output
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.table_model import TableModel, table_engine

GREEDY = LogitsParams(temperature=0)


def ask(length: int = 6, max_tokens: int = 8, **changes: object) -> Request:
    prompt = tuple(i % 31 for i in range(length))
    request = Request(prompt, logits=GREEDY, stopping=StoppingParams(max_tokens))
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def add(engine: Engine, *requests: Request) -> None:
    for index, request in enumerate(requests):
        engine.add(index, request, build)


def drain(engine: Engine) -> list[Output]:
    outputs = []
    while engine.has_work:
        outputs += engine.tick()
    return outputs


def test_a_finished_row_leaves_the_batch_and_the_others_go_on() -> None:
    engine = table_engine()
    add(engine, ask(max_tokens=2), ask(max_tokens=5))
    rows = []
    while engine.has_work:
        engine.tick()
        rows.append(engine.tick_rows)
    assert rows == [2, 2, 1, 1, 1]


def test_a_request_joins_in_the_next_tick() -> None:
    engine = table_engine()
    add(engine, ask(max_tokens=9))
    engine.tick()
    engine.add(7, ask(max_tokens=9), build)
    assert {o.request_id for o in engine.tick()} == {0, 7}


def test_admission_is_said_at_once_although_the_first_token_is_ticks_away() -> None:
    engine = table_engine(num_pages=400, tick_tokens=64, max_rows=1)
    add(engine, ask(length=300), ask())
    (said,) = engine.tick()
    assert (said.request_id, said.emits, said.usage) == (0, [], None)
    assert engine.tick() == []


def test_all_rows_share_one_forward() -> None:
    model = TableModel()
    engine = table_engine(models={"main": model})
    add(engine, *(ask(max_tokens=3) for _ in range(5)))
    drain(engine)
    assert model.num_forwards == 3


def test_a_tick_makes_one_device_to_host_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = 0
    real = torch.Tensor.cpu

    def counting(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal copies
        copies += 1
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counting)
    engine = table_engine()
    sampled = ask(logits=LogitsParams(1.0, top_k=5), strategy=Sampling(2), logprobs=LogprobsParams(3, 2))
    add(engine, sampled, ask(logprobs=LogprobsParams(1)))
    engine.tick()
    assert copies == 1
    engine.tick()
    assert copies == 2


def test_a_long_prompt_is_cut_at_fixed_borders_while_short_feeds_run_in_every_tick() -> None:
    model = TableModel(num_pages=400)
    engine = table_engine(models={"main": model}, tick_tokens=100)
    add(engine, ask(max_tokens=30), ask(length=300, max_tokens=1))
    tokens = []
    for _ in range(6):
        engine.tick()
        tokens.append(engine.tick_tokens)
    assert tokens == [6 + 64, 1 + 64, 1 + 64, 1 + 64, 1 + 44, 1]


def test_long_prompts_share_the_tokens_of_a_tick() -> None:
    engine = table_engine(num_pages=200, tick_tokens=100)
    add(
        engine, ask(length=60, max_tokens=1), ask(length=62, max_tokens=1, cache_salt="a"), ask(length=61, max_tokens=1)
    )
    engine.tick()
    assert engine.tick_tokens == 60 + 62, "where less than a chunk is left, a chunk still runs"
    drain(engine)


def test_nobody_is_admitted_to_the_pages_that_running_rows_need_next() -> None:
    engine = table_engine(num_pages=5)
    engine.add(0, ask(length=4, max_tokens=6), build)
    engine.tick()
    engine.add(1, ask(length=12, max_tokens=1, cache_salt="b"), build)
    drain(engine)
    assert engine.scheduler.counters.preemptions == 0


def test_cancelling_frees_rows_and_pages_at_once() -> None:
    engine = table_engine()
    add(engine, ask(strategy=Sampling(3)), ask())
    engine.tick()
    engine.tick()
    engine.cancel(0)
    engine.check_integrity()
    assert len(engine.scheduler.running) == 1
    assert {o.request_id for o in drain(engine)} == {1}
    assert engine.used_pages == 0


def test_cancelling_what_waits_what_is_over_or_what_never_was_is_harmless() -> None:
    engine = table_engine(max_rows=1)
    add(engine, ask(max_tokens=2), ask())
    engine.tick()
    engine.cancel(1)
    engine.cancel(99)
    drain(engine)
    engine.cancel(0)
    engine.check_integrity()


def test_rows_bound_admission() -> None:
    engine = table_engine(max_rows=4)
    add(engine, ask(strategy=Sampling(3)), ask(strategy=Sampling(2)), ask())
    engine.tick()
    assert [r.id for r in engine.scheduler.running] == [0]
    assert [r.id for r in engine.scheduler.waiting] == [1, 2]


def test_a_lower_priority_number_runs_first() -> None:
    engine = table_engine(max_rows=1)
    add(engine, ask(), ask(priority=5), ask(priority=-1))
    finished = [o.request_id for o in drain(engine) if o.usage]
    assert finished == [2, 0, 1]


def test_preemption_takes_the_youngest_and_the_oldest_never_waits() -> None:
    engine = table_engine(num_pages=12)
    add(engine, *(ask(length=8, max_tokens=20) for _ in range(3)))
    usages = {o.request_id: o.usage for o in drain(engine) if o.usage}
    assert usages[0] is not None
    assert usages[2] is not None
    assert usages[0].preemptions == 0
    assert usages[2].preemptions > 0


def test_a_shared_prefix_is_computed_once_and_reported_as_cached() -> None:
    model = TableModel()
    engine = table_engine(models={"main": model})
    run(engine, [ask(length=21, max_tokens=1)])
    before = model.num_tokens
    (answer,) = run(engine, [ask(length=21, max_tokens=1)])
    assert answer.usage is not None
    assert answer.usage.cached_tokens == 20
    assert model.num_tokens - before == 1


@pytest.mark.parametrize("later", [0, 1])
def test_prompts_that_begin_alike_and_come_at_once_compute_their_beginning_once(later: int) -> None:
    """Also where some of it was computed, chunk by chunk, before the others came."""
    shared = tuple(np.random.default_rng(3).integers(3, 40, 200).tolist())
    asked = [Request((*shared, 3 + i), logits=GREEDY, stopping=StoppingParams(2)) for i in range(6)]
    model = TableModel(num_pages=400)
    engine = table_engine(models={"main": model}, tick_tokens=48)
    answers = [Answer() for _ in asked]
    for number, request in enumerate(asked):
        engine.add(number, request, build)
        outputs = [output for _ in range(later) for output in engine.tick()]
        for output in outputs:
            answers[output.request_id].take(output)
    for output in drain(engine):
        answers[output.request_id].take(output)
    assert [answer.said for answer in answers] == [run(table_engine(num_pages=400), [each])[0].said for each in asked]
    assert model.num_tokens <= 200 + 6 * 10  # the last 9 of each prompt are a short feed, which waits for nobody
    counters = engine.scheduler.counters
    assert counters.prefix_queries == 6 * 201
    assert counters.prefix_hits == sum(answer.usage.cached_tokens for answer in answers if answer.usage)
    assert counters.prefix_hits >= 5 * 192


def test_salts_and_the_switch_keep_prefixes_apart() -> None:
    for options, second in (({}, ask(cache_salt="b")), ({"shares_prefixes": False}, ask())):
        engine = table_engine(**options)
        run(engine, [ask()])
        answer = Answer()
        engine.add(1, second, build)
        for output in drain(engine):
            answer.take(output)
        assert answer.usage is not None
        assert answer.usage.cached_tokens == 0


def test_multi_turn_prompts_hit_the_pages_of_the_earlier_answer() -> None:
    engine = table_engine()
    first = ask(length=10, max_tokens=12)
    (answer,) = run(engine, [first])
    second = Request((*first.prompt_ids, *answer.tokens(), 1, 2), logits=GREEDY, stopping=StoppingParams(3))
    (again,) = run(engine, [second])
    assert again.usage is not None
    assert again.usage.cached_tokens == 20
    assert again.said == run(table_engine(), [second])[0].said


def test_usage_counts_the_positions_that_were_run() -> None:
    (answer,) = run(table_engine(), [ask(length=6, max_tokens=8)])
    assert answer.usage is not None
    assert answer.usage.computed_tokens == 6 + 7
    assert answer.usage.queue_seconds >= 0


LONG = StoppingParams(40, ignore_eos=True)


@pytest.mark.parametrize(
    "request_", [ask(length=300), ask(strategy=Sampling(30)), ask(length=50, strategy=Sampling(20), stopping=LONG)]
)
def test_what_could_never_run_alone_is_refused_at_once(request_: Request) -> None:
    engine = table_engine(max_rows=24)
    add(engine, request_)
    (output,) = drain(engine)
    assert output.failure is not None
    assert output.failure.code == "never_fits"
    engine.check_integrity()


def test_a_request_that_may_end_early_is_tried_and_ended_alone_when_it_outgrows_the_cache() -> None:
    greedy_for_room = ask(length=20, strategy=Sampling(10), max_tokens=60, logits=LogitsParams(1.0))
    engine = table_engine(num_pages=40)
    add(engine, ask(), greedy_for_room)
    outputs = drain(engine)
    assert [(o.request_id, o.failure.code) for o in outputs if o.failure] == [(1, "never_fits")]
    assert sum(len(e.token_ids) for o in outputs if o.request_id == 0 for e in o.emits) == 8
    engine.check_integrity()
    assert engine.used_pages == 0
    early = run(table_engine(num_pages=40, eos=tuple(range(20))), [greedy_for_room])[0]
    assert early.failure is None


def test_a_strategy_that_cannot_even_begin_fails_alone() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    engine = table_engine()
    engine.add(0, ask(), broken)  # type: ignore[arg-type]
    engine.add(1, ask(), build)
    outputs = drain(engine)
    assert [o.failure.code for o in outputs if o.failure] == ["internal"]
    assert sum(len(e.token_ids) for o in outputs if o.request_id == 1 for e in o.emits) == 8
