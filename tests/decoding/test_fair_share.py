"""Who loses its pages when they run out: a request that holds far more than its share, before those beside it."""

from __future__ import annotations

import dataclasses

from decoding.engine import Engine
from decoding.params import LogitsParams, Request, Sampling, StoppingParams
from decoding.strategies import build
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

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(len(self.asked), request, build)
            self.asked.append(request)
            self.answers.append(Answer())

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
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
