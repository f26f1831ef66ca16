"""Who gives way when pages or rows run out: who holds far more than his share, before those beside him."""

from __future__ import annotations

import dataclasses
import random

from decoding.contract.params import LogitsParams, Request, Sampling, StoppingParams
from decoding.engine import shares
from decoding.engine.engine import Engine
from decoding.strategies import build
from tests.decoding.crowd import random_requests
from tests.decoding.drive import Answer, run
from tests.decoding.table_model import table_engine

NUM_PAGES = 60


def large(seed: int = 1, max_tokens: int = 32) -> Request:
    """Outgrows everybody: six rows that share next to nothing, and could fill most of the cache alone."""
    stopping = StoppingParams(max_tokens, ignore_eos=True)
    return Request((1, 2, 3, 4, 5, 6, 7, 8), Sampling(6), LogitsParams(1.0), stopping, seed=seed)


def small(seed: int) -> Request:
    stopping = StoppingParams(16, ignore_eos=True)
    return Request((9, 8, seed % 30), logits=LogitsParams(1.0), stopping=stopping, seed=seed)


def alone(request: Request) -> object:
    return run(table_engine(num_pages=NUM_PAGES), [request])[0].said


class Arrivals:
    """An engine, what it was asked in the course of time, and what it said."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[Request] = []
        self.answers: list[Answer] = []
        self.finished: list[int] = []
        self.seconds = 0.0

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(len(self.asked), request, build)
            self.asked.append(request)
            self.answers.append(Answer())

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.seconds += shares.TURN / TURN
            for output in self.engine.tick():
                self.answers[output.request_id].take(output)
                if output.usage is not None:
                    self.finished.append(output.request_id)
            self.engine.check_integrity()

    def drain(self) -> None:
        while self.engine.has_work:
            self.tick()

    def preemptions(self, index: int) -> int:
        usage = self.answers[index].usage
        assert usage is not None
        return usage.preemptions


def test_a_large_request_gives_way_before_the_small_ones_that_came_after_it() -> None:
    arrivals = Arrivals(table_engine(num_pages=NUM_PAGES))
    arrivals.add(large())
    arrivals.tick(14)
    arrivals.add(*map(small, range(5)))
    arrivals.drain()
    assert [arrivals.preemptions(i) for i in range(6)] == [1, 0, 0, 0, 0, 0]
    assert arrivals.finished[-1] == 0
    assert [answer.said for answer in arrivals.answers] == [alone(request) for request in arrivals.asked]


def test_a_large_request_ends_however_many_small_ones_go_on_coming() -> None:
    arrivals = Arrivals(table_engine(num_pages=NUM_PAGES))
    arrivals.add(large(), large(2), large(3))
    while not {0, 1, 2} <= set(arrivals.finished):
        assert len(arrivals.asked) < 400
        arrivals.add(small(len(arrivals.asked)))
        arrivals.tick(2)
    arrivals.drain()
    assert [answer.said for answer in arrivals.answers] == [alone(request) for request in arrivals.asked]


def test_a_large_request_does_not_give_way_to_less_urgent_ones() -> None:
    arrivals = Arrivals(table_engine(num_pages=NUM_PAGES))
    arrivals.add(large())
    arrivals.tick(14)
    arrivals.add(*(dataclasses.replace(small(seed), priority=1) for seed in range(5)))
    arrivals.drain()
    assert arrivals.preemptions(0) == 0
    assert sum(arrivals.preemptions(i) for i in range(1, 6)) > 0


def test_a_preempted_request_comes_back_when_all_its_rows_have_room() -> None:
    """Counted by its prompt alone it came back at once, was fed again up to where the pages ended, and lost them
    again."""
    arrivals = Arrivals(table_engine(num_pages=NUM_PAGES))
    arrivals.add(dataclasses.replace(large(4), priority=-1), large())
    arrivals.drain()
    assert arrivals.preemptions(1) <= 2
    assert [answer.said for answer in arrivals.answers] == [alone(request) for request in arrivals.asked]


MAX_ROWS = 16
TURN = 16
"""Ticks that a turn takes by these engines' clocks."""


def of(client: str, n: int, max_tokens: int = 4, seed: int = 1) -> Request:
    stopping = StoppingParams(max_tokens, ignore_eos=True)
    return Request((1, 2, 3, seed % 30), Sampling(n), LogitsParams(1.0), stopping, seed=seed, client=client)


def crowded(max_rows: int = MAX_ROWS) -> Arrivals:
    """Whose time goes by in ticks."""
    arrivals = Arrivals(table_engine(num_pages=2000, max_rows=max_rows, clock=lambda: arrivals.seconds))
    return arrivals


def check_the_same(arrivals: Arrivals) -> None:
    """All have ended, and said what they say alone."""
    arrivals.drain()
    assert sorted(arrivals.finished) == list(range(len(arrivals.asked)))
    for request, answer in zip(arrivals.asked, arrivals.answers, strict=True):
        (undisturbed,) = run(table_engine(num_pages=2000), [request])
        assert answer.said == undisturbed.said


def has_begun(arrivals: Arrivals, index: int) -> bool:
    return bool(arrivals.answers[index].choices)


def test_who_holds_all_rows_gives_way_to_another_client() -> None:
    for wide in ([of("a", 4, 200, seed) for seed in range(4)], [of("a", MAX_ROWS, 200)]):
        arrivals = crowded()
        arrivals.add(*wide, of("a", 4, 200, 9))
        arrivals.tick(TURN + 2)
        assert len(arrivals.engine.scheduler.running) == len(wide)
        arrivals.add(of("b", 1))
        arrivals.tick()
        assert has_begun(arrivals, len(wide) + 1)
        arrivals.drain()
        assert arrivals.finished[0] == len(wide) + 1
        assert sum(arrivals.preemptions(i) for i in range(len(wide))) == 1
        check_the_same(arrivals)


def test_others_begin_within_a_turn_however_many_wait_of_who_holds_the_rows() -> None:
    arrivals = crowded()
    arrivals.add(*(of("a", 4, 200, seed) for seed in range(12)))
    for index in range(12, 24):
        arrivals.add(of("bcd"[index % 3], 1 + index % 4, 3, index))
        arrivals.tick(3 * TURN)
        assert has_begun(arrivals, index)
    check_the_same(arrivals)


def test_a_wide_request_gets_its_turns_however_many_narrow_ones_go_on_coming() -> None:
    arrivals = crowded()
    arrivals.add(of("a", MAX_ROWS, 100))
    while 0 not in arrivals.finished:
        assert len(arrivals.asked) < 1000
        arrivals.add(*(of(client, 2, 6, len(arrivals.asked) + at) for at, client in enumerate("bcde")))
        arrivals.tick(4)
    assert arrivals.preemptions(0) > 1
    check_the_same(arrivals)


def test_a_wide_request_takes_its_turn_from_long_ones_that_went_before_it() -> None:
    """And those behind it do not wait for the end of either."""
    arrivals = crowded()
    arrivals.add(of("b", 1, 400), of("a", MAX_ROWS, 50))
    while not has_begun(arrivals, 1):
        assert len(arrivals.asked) < 200
        arrivals.add(of("c", 1, 4, len(arrivals.asked)))
        arrivals.tick(2)
    assert 0 not in arrivals.finished
    arrivals.add(of("d", 1))
    last = len(arrivals.asked) - 1
    arrivals.tick(4 * TURN)
    assert has_begun(arrivals, last)
    check_the_same(arrivals)


def test_nobody_is_disturbed_by_who_is_no_narrower() -> None:
    """Many clients of equal requests are served as they come; so is one client, whatever it asks."""
    many = [of(str(seed), 1, 3 * TURN, seed) for seed in range(3 * MAX_ROWS)]
    wide = [of(str(seed), 9, 3 * TURN, seed) for seed in range(4)]
    one = [of("a", 1 + 5 * (seed % 3), 3 * TURN, seed) for seed in range(12)]
    for requests in (many, wide, one):
        arrivals = crowded()
        arrivals.add(*requests)
        begun: list[int] = []
        while arrivals.engine.has_work:
            arrivals.tick()
            begun += [i for i in range(len(requests)) if has_begun(arrivals, i) and i not in begun]
        assert begun == list(range(len(requests)))
        assert arrivals.engine.scheduler.counters.preemptions == 0


def test_rows_are_not_taken_from_more_urgent_requests() -> None:
    arrivals = crowded()
    arrivals.add(dataclasses.replace(of("a", MAX_ROWS, 60), priority=-1))
    arrivals.tick(TURN + 2)
    arrivals.add(of("b", 1))
    arrivals.drain()
    assert arrivals.finished == [0, 1]


def test_a_crowd_of_clients_says_what_each_says_alone() -> None:
    rng = random.Random(5)
    requests = [dataclasses.replace(each, client=rng.choice("aab")) for each in random_requests(rng, 60, 40)]
    arrivals = crowded(max(each.max_rows for each in requests))
    for request in requests:
        arrivals.add(request)
        arrivals.tick(rng.randrange(12))
    check_the_same(arrivals)
    assert arrivals.engine.scheduler.counters.preemptions > 0
