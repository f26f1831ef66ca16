"""The next tick's forward launched before this one is read: when, what becomes of it, and that nobody can tell."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import decoding.device
from decoding.attention.interface import Batch
from decoding.contract.params import (
    Beam,
    BestOf,
    Dola,
    Entropix,
    LogitsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
)
from decoding.device import Arriving
from decoding.engine import launch_ahead
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.launch_ahead import PAUSE_TICKS
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.seam import Draw, Feed, Move, Observation, Open, Reading, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies import build
from tests.decoding.conftest import one_thread
from tests.decoding.crowd import crowd_token_bytes, random_requests, run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.table_model import TableHidden, TableModel, crowd_engine, table_engine
from tests.decoding.tiny import tiny

__all__ = ["one_thread"]

VOCAB = 40
GREEDY = LogitsParams(temperature=0)


def ask(*prompt: int, max_tokens: int = 10, logits: LogitsParams = GREEDY, n: int = 1, seed: int = 0) -> Request:
    return Request(prompt or (1, 2, 3), Sampling(n), logits, StoppingParams(max_tokens, ignore_eos=True), seed=seed)


def engine_of(model: TableModel | None = None, *, launches_ahead: bool = True, **options: Any) -> Engine:
    return table_engine(models={"main": model or TableModel()}, launches_ahead=launches_ahead, **options)


def plain(requests: Sequence[Request], num_pages: int = 64) -> list[object]:
    return [a.said for a in run(engine_of(TableModel(num_pages=num_pages), launches_ahead=False), requests)]


# what it must not change


def drawing_requests(rng: random.Random, count: int, vocab: int, others: int) -> list[Request]:
    """A crowd in which most rows draw and nothing else, so that there is much to guess, and some do otherwise."""
    drawing = (Sampling, BestOf, Dola)
    requests = random_requests(rng, 12 * count, vocab)
    chosen = [r for r in requests if isinstance(r.strategy, drawing)][:count]
    chosen += [r for r in requests if isinstance(r.strategy, PromptLookup | Entropix)][:others]
    chosen += [r for r in requests if isinstance(r.strategy, Beam)][: others // 4]
    rng.shuffle(chosen)
    return chosen


def small_engine(num_pages: int, *, launches_ahead: bool) -> Engine:
    return crowd_engine(num_pages, VOCAB, max_rows=16, launches_ahead=launches_ahead)


def test_a_crowd_that_runs_ahead_answers_as_each_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrivals, cancellations and preemptions at random; the books are checked after every tick."""
    monkeypatch.setattr(launch_ahead, "WORTH_A_FORWARD", 2)  # rows are few here
    requests = drawing_requests(random.Random(3), 60, VOCAB, others=8)
    engine = small_engine(52, launches_ahead=True)
    answers = run_crowd(engine, requests, random.Random(3))
    for index, answer in answers.items():
        (solo,) = run(small_engine(200, launches_ahead=False), [requests[index]])
        assert answer.said == solo.said, f"request {index} differs: {requests[index]}"
    counters = engine.launch_ahead.counters
    assert engine.scheduler.counters.preemptions > 10
    assert counters.taken > 200
    assert counters.rows > counters.taken, "some guess was wrong"
    assert counters.raised == 0


@pytest.fixture(scope="module")
def llama() -> Model:
    model = wrap(tiny("llama"))
    model.attention.allocate(200)
    return model


def test_a_real_model_that_runs_ahead_says_the_same_bits(llama: Model) -> None:
    def make(num_pages: int, *, launches_ahead: bool) -> Engine:
        caches = {"main": PageCache(num_pages, llama.attention.page_size)}
        return make_engine(
            {"main": llama},
            caches,
            eos_token_ids=(3,),
            token_bytes=crowd_token_bytes(llama.info.vocab_size),
            max_rows=12,
            tick_tokens=64,
            launches_ahead=launches_ahead,
        )

    requests = drawing_requests(random.Random(5), 24, llama.info.vocab_size, others=4)
    engine = make(24, launches_ahead=True)
    answers = run_crowd(engine, requests, random.Random(5))
    for index, answer in answers.items():
        assert answer.said == run(make(200, launches_ahead=False), [requests[index]])[0].said
    assert engine.launch_ahead.counters.taken > 100


def test_every_tick_does_and_says_what_it_would_have_without() -> None:
    """Tick by tick, where pages do not run out. (Where they do, others may be preempted: pages are taken earlier.)"""
    requests = drawing_requests(random.Random(8), 32, VOCAB, others=4)
    engines = [small_engine(600, launches_ahead=on) for on in (False, True)]
    for index, request in enumerate(requests):
        for engine in engines:
            engine.add(index, request, build)
    while engines[0].has_work:
        said = [[(o.request_id, o.emits, o.failure) for o in engine.tick()] for engine in engines]
        assert said[0] == said[1]
        counted = [(e.tick_rows, e.tick_tokens, e.computed_tokens) for e in engines]
        assert counted[0] == counted[1]
    assert not engines[1].has_work
    assert engines[1].launch_ahead.counters.rows > engines[1].launch_ahead.counters.taken > 50


# when it happens


@pytest.mark.parametrize("logits", [GREEDY, LogitsParams(1.0, top_k=9), LogitsParams(0.9, repetition_penalty=1.3)])
def test_rows_that_only_draw_have_every_tick_but_the_first_launched_ahead(logits: LogitsParams) -> None:
    """Penalties too: they concern the reads, which are launched when the history is known."""
    model = TableModel(num_pages=200)
    engine = engine_of(model)
    requests = [ask(1, 2, i, logits=logits, max_tokens=12, seed=i) for i in range(5)]
    assert [a.said for a in run(engine, requests)] == plain(requests)
    counters = engine.launch_ahead.counters
    assert (counters.forwards, counters.rows, counters.taken) == (11, 55, 55)
    assert model.num_forwards == 12, "no forward is run in vain"


def beam(max_tokens: int = 10) -> Request:
    return Request((1, 2), Beam(1, 2), GREEDY, StoppingParams(max_tokens, ignore_eos=True))


def test_few_rows_are_not_guessed_where_others_that_do_not_draw_need_a_forward_of_their_own() -> None:
    """The weights would be read twice a tick."""
    model = TableModel()
    engine = engine_of(model)
    run(engine, [ask(), beam()])
    assert engine.launch_ahead.counters.forwards == 0
    assert model.num_forwards == 10


@pytest.mark.parametrize("num_drawing", [3, 1])
def test_rows_worth_a_forward_are_guessed_whoever_else_runs_but_not_fewer_than_those(
    num_drawing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams between them: each row's guess is fed what that row drew."""
    monkeypatch.setattr(launch_ahead, "WORTH_A_FORWARD", 1)
    engine = engine_of()
    requests = [ask(9), beam(), ask(2), ask(1)] if num_drawing == 3 else [ask(9), beam()]
    assert [a.said for a in run(engine, requests)] == plain(requests)
    counters = engine.launch_ahead.counters
    expected = 3 * 9 if num_drawing == 3 else 1  # the beams begin as one row, which is not more than the other one
    assert counters.rows == counters.taken == expected


def test_rows_worth_a_forward_are_guessed_while_a_long_prompt_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ahead, "WORTH_A_FORWARD", 2)
    model = TableModel(num_pages=200)
    engine = engine_of(model, tick_tokens=64)
    requests = [ask(1), ask(2), ask(*(i % VOCAB for i in range(300)), max_tokens=3)]
    assert [a.said for a in run(engine, requests)] == plain(requests, num_pages=200)
    counters = engine.launch_ahead.counters
    assert counters.rows == counters.taken == 9 + 9 + 2


def test_who_arrives_draws_ahead_from_its_first_token_on() -> None:
    """Short answers: in nearly every tick somebody arrives, and nobody waits for it."""
    engine = engine_of(TableModel(num_pages=200))
    requests = [ask(i, 5, max_tokens=4) for i in range(12)]
    answers = [Answer() for _ in requests]
    for index, request in enumerate(requests):
        engine.add(index, request, build)
        for output in engine.tick():
            answers[output.request_id].take(output)
    while engine.has_work:
        for output in engine.tick():
            answers[output.request_id].take(output)
    assert [a.said for a in answers] == plain(requests, num_pages=200)
    assert engine.launch_ahead.counters.rows == engine.launch_ahead.counters.taken == 12 * 3


def test_off_means_that_nothing_is_launched_ahead() -> None:
    engine = engine_of(launches_ahead=False)
    run(engine, [ask()])
    assert engine.launch_ahead.counters.forwards == 0


def test_rows_that_end_for_sure_are_left_out_and_the_others_go_on() -> None:
    model = TableModel()
    engine = engine_of(model)
    requests = [ask(1, max_tokens=5), ask(2, max_tokens=9)]
    assert [a.said for a in run(engine, requests)] == plain(requests)
    assert engine.launch_ahead.counters.taken == engine.launch_ahead.counters.rows == 4 + 8
    assert model.num_forwards == 9


class Noting(TableModel):
    """Notes its forwards, and which of them were fed ids that only the device knew."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        self._events.append("ahead" if batch.drawn is not None else "forward")
        assert batch.drawn is None or not batch.token_ids.any(), "the host knew"
        return super().forward(batch, layers)


def test_the_next_forward_is_launched_before_the_host_reads_what_this_one_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy whose numbers come to be only when they are waited for, as a GPU's do."""
    events: list[str] = []

    class Late(Arriving):
        def __init__(self, tensor: torch.Tensor) -> None:
            self._tensor = tensor
            events.append("send")

        def wait(self) -> np.ndarray:
            events.append("read")
            return self._tensor.numpy()

    monkeypatch.setattr(decoding.device, "Arriving", Late)
    run(engine_of(Noting(events)), [ask(max_tokens=4)])
    assert events == ["forward", *["send", "ahead", "read"] * 3, "send", "read"]


# what becomes of a wrong guess


def test_a_row_that_stops_leaves_its_guess_behind_and_no_page() -> None:
    (answer,) = run(engine_of(launches_ahead=False), [ask()])
    stop = answer.tokens()[5]
    request = dataclasses.replace(ask(), stopping=StoppingParams(10, stop_token_ids=(stop,)))
    engine = engine_of()
    assert [a.said for a in run(engine, [request, ask(7, 8)])] == plain([request, ask(7, 8)])
    assert engine.launch_ahead.counters.rows - engine.launch_ahead.counters.taken == 1
    assert engine.used_pages == 0


def test_what_was_only_guessed_is_never_found_as_a_prefix() -> None:
    """Pages of two tokens, so that each token after a stop would complete one."""
    stops = {run(engine_of(launches_ahead=False), [ask()])[0].tokens()[i] for i in (4, 5)}
    for stop in stops:
        request = dataclasses.replace(ask(), stopping=StoppingParams(10, stop_token_ids=(stop,)))
        cached = []
        for on in (False, True):
            engine = engine_of(TableModel(page_size=2), launches_ahead=on)
            (answer,) = run(engine, [request])
            (again,) = run(engine, [ask(1, 2, 3, *answer.tokens(), 5, 6)])
            assert again.usage is not None
            cached.append(again.usage.cached_tokens)
        assert cached[0] == cached[1]


def test_a_row_that_is_cancelled_between_two_ticks_harms_nobody() -> None:
    engine, other = engine_of(), ask(7, 8, max_tokens=20)
    answer = Answer()
    engine.add(0, ask(max_tokens=20), build)
    engine.add(1, other, build)
    for _ in range(6):
        for output in engine.tick():
            if output.request_id == 1:
                answer.take(output)
    engine.cancel(0)
    engine.check_integrity()
    while engine.has_work:
        for output in engine.tick():
            answer.take(output)
        engine.check_integrity()
    assert [answer.said] == plain([other])
    assert engine.launch_ahead.counters.rows - engine.launch_ahead.counters.taken == 1


def test_who_arrives_meanwhile_runs_in_a_forward_of_its_own_in_the_same_tick() -> None:
    model = TableModel()
    engine = engine_of(model)
    engine.add(0, ask(max_tokens=20), build)
    for _ in range(4):
        engine.tick()
    engine.add(1, ask(9, 9, 9), build)
    before = model.num_forwards
    assert {o.request_id for o in engine.tick()} == {0, 1}
    assert engine.tick_rows == 2
    assert model.num_forwards == before + 1 + 1, "the arrival's, and the next one, of both"
    engine.tick()
    assert engine.launch_ahead.counters.taken == 4 + 2


def test_a_row_that_gave_way_and_came_back_at_once_takes_no_guess_for_pages_it_no_longer_has() -> None:
    """The prefix index brings it back to where it was, but what the guess wrote is in a page that another took."""
    engine, requests = engine_of(), [ask(*range(7), max_tokens=20), ask(5, 6, max_tokens=2)]
    answers = [Answer(), Answer()]

    def tick() -> None:
        for output in engine.tick():
            answers[output.request_id].take(output)

    engine.add(0, requests[0], build)
    tick()
    tick()
    engine.scheduler._preempt(engine.scheduler.running[0])  # as for a wide request that leaves room for it
    engine.add(1, dataclasses.replace(requests[1], priority=-1), build)
    while engine.has_work:
        tick()
    assert [a.said for a in answers] == plain(requests)
    counters = engine.launch_ahead.counters
    assert counters.rows == counters.taken + 1


class Wayward:
    """Draws on now and then, and breaks the habit in every way there is. Keeps what it read."""

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        self._moves = self._play(request.prompt_ids)
        self.read: list[tuple[Reading, ...]] = []

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return next(self._moves)

    def step(self, seen: Observation) -> Move:
        self.read += [row.readings for row in seen.rows]
        try:
            return self._moves.send(seen)
        except StopIteration:
            return Move()

    def _play(self, prompt: Sequence[int]) -> Generator[Move, Observation, None]:
        draw = Want((Draw(),))
        seen = yield Move((Feed(Open(), tuple(prompt), want=draw),))
        for times in range(1, 9):  # so that each break falls on every place in a page
            for _ in range(3 + times % 3):
                seen = yield Move(tuple(Feed(r.row, r.last.tokens, want=draw) for r in seen.rows))
            a = seen.rows[0]  # others are dropped
            seen = yield Move((Feed(a.row, ((a.last.tokens[0] + 1) % VOCAB,), want=draw),))  # another token
            seen = yield from self._habit(seen, draw)
            a = seen.rows[0]
            seen = yield Move((Feed(a.row, a.last.tokens, drop=1, want=draw),))  # the same token elsewhere
            seen = yield from self._habit(seen, draw)
            a = seen.rows[0]
            seen = yield Move((Feed(a.row, a.last.tokens, want=Want((Draw(1),), top_k=3, hidden=True, layers=(0,))),))
            seen = yield from self._habit(seen, draw)
            a = seen.rows[0]
            seen = yield Move((Feed(a.row, a.last.tokens, want=Want((Draw(),), attention=True)),))
            a = seen.rows[0]
            seen = yield Move((Feed(a.row, (*a.last.tokens, 5), want=draw),))
            seen = yield from self._habit(seen, draw)
            a = seen.rows[0]
            seen = yield Move(tuple(Feed(a.row, (t,), want=draw) for t in (7, a.last.tokens[0])))  # a fork
            seen = yield from self._habit(seen, draw)
            a, b = seen.rows
            for _ in range(3):
                seen = yield Move((Feed(a.row, (1, 2), want=draw),), hold=(b.row,))
            seen = yield Move((Feed(b.row, b.last.tokens, want=draw), Feed(seen.rows[0].row, (3,), want=draw)))

    @staticmethod
    def _habit(seen: Observation, draw: Want) -> Generator[Move, Observation, Observation]:
        for _ in range(3):
            seen = yield Move(tuple(Feed(r.row, r.last.tokens, want=draw) for r in seen.rows))
        return seen


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
def test_a_strategy_that_breaks_its_habit_reads_what_it_would_have_read(page_size: int) -> None:
    engines, players = [], []

    def make(request: Request, stopping: Stopping, tools: Tools) -> Wayward:
        players.append(Wayward(request, stopping, tools))
        return players[-1]

    for on in (False, True):
        engine = engine_of(TableModel(page_size=page_size, num_pages=400), launches_ahead=on)
        engine.add(0, ask(1, 2, 3, max_tokens=200), make)
        engines.append(engine)
    without, ahead = engines
    while without.has_work:
        launched = ahead.launch_ahead.counters.rows
        for engine in engines:
            assert all(output.failure is None for output in engine.tick())
            engine.check_integrity()
        if ahead.launch_ahead.counters.rows == launched:
            assert without.used_pages == ahead.used_pages, "a page is kept that nobody writes"
    assert ahead.launch_ahead.counters.rows - ahead.launch_ahead.counters.taken > 30
    assert ahead.launch_ahead.counters.taken > 50
    assert repr(players[0].read) == repr(players[1].read)
    assert len(players[1].read) > 200


class Unready(TableModel):
    """Cannot run a forward ahead."""

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        if batch.drawn is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch, layers)


def test_a_guess_that_raises_is_dropped_and_not_tried_again_at_once() -> None:
    engine = engine_of(Unready(num_pages=200))
    requests = [ask(1, max_tokens=80), ask(2, max_tokens=80)]
    assert [a.said for a in run(engine, requests)] == plain(requests, num_pages=200)
    assert engine.launch_ahead.counters.raised == 2
    assert PAUSE_TICKS < 78 < 2 * PAUSE_TICKS
    assert engine.used_pages == 0


class Touchy(TableModel):
    """Raises for a batch in which an id is fed."""

    def __init__(self, poison: int) -> None:
        super().__init__(num_pages=200)
        self._poison = poison

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        if self._poison in batch.ids_on(torch.device("cpu")):
            raise IndexError("boom")
        return super().forward(batch, layers)


def test_an_exception_that_a_guess_meets_first_fails_the_request_that_causes_it() -> None:
    requests = [ask(i, 8, max_tokens=20) for i in range(4)]
    said = [a.tokens() for a in run(engine_of(launches_ahead=False), requests)]
    poison = next(t for t in said[2][3:-1] if all(t not in s for i, s in enumerate(said) if i != 2))
    answers = run(engine_of(Touchy(poison)), requests)
    assert [a.failure and a.failure.code for a in answers] == [None, None, "internal", None]
    assert [a.tokens() for i, a in enumerate(answers) if i != 2] == [s for i, s in enumerate(said) if i != 2]


def test_a_guess_takes_no_page_that_would_be_missed() -> None:
    """Two rows cross into new pages at once, and there is one page for both of them."""
    preemptions = []
    requests = [ask(1, 2, 3), ask(4, 5, 6)]
    for on in (False, True):
        engine = engine_of(TableModel(num_pages=5), launches_ahead=on)
        assert [a.said for a in run(engine, requests)] == plain(requests)
        preemptions.append(engine.scheduler.counters.preemptions)
    assert preemptions[0] == preemptions[1] > 0
