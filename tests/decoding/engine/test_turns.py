"""Two groups of requests in turn: when, in which order things are launched and read, and that nobody can tell."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import decoding.device
from decoding.attention.interface import Batch
from decoding.contract.params import Beam, LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.device import Arriving
from decoding.engine import launch_ahead, turns
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.reading import ReadSlice
from decoding.engine.scheduler import SHORT_FEED
from decoding.model.loading import wrap
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


@pytest.fixture(autouse=True)
def few_rows_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "GROUP_ROWS", 2)


def beam(*prompt: int, max_tokens: int = 10, width: int = 2) -> Request:
    return Request(
        prompt, Beam(1, width), GREEDY, StoppingParams(max_tokens, ignore_eos=True), LogprobsParams(output=1)
    )


def engine_of(model: TableModel | None = None, *, launches_ahead: bool = True, **options: Any) -> Engine:
    return table_engine(models={"main": model or TableModel(num_pages=200)}, launches_ahead=launches_ahead, **options)


def alone(requests: Sequence[Request]) -> list[object]:
    return [run(engine_of(launches_ahead=False), [request])[0].said for request in requests]


FOUR = [beam(at, 5, max_tokens=8 + at) for at in range(4)]


# what it must not change


def small_engine(num_pages: int, *, launches_ahead: bool) -> Engine:
    return crowd_engine(num_pages, VOCAB, launches_ahead=launches_ahead)


def test_a_crowd_of_every_strategy_answers_as_each_does_alone() -> None:
    """Arrivals, cancellations and preemptions at random; the books are checked after every tick."""
    requests = random_requests(random.Random(6), 60, VOCAB)
    engine = small_engine(60, launches_ahead=True)
    answers = run_crowd(engine, requests, random.Random(6))
    for index, answer in answers.items():
        (solo,) = run(small_engine(200, launches_ahead=False), [requests[index]])
        assert answer.said == solo.said, f"request {index} differs: {requests[index]}"
    assert engine.scheduler.counters.preemptions > 10
    assert engine.turns.counters.groups > 40
    assert engine.turns.counters.raised == 0


def test_a_real_model_says_the_same_bits() -> None:
    model = wrap(tiny("llama"))
    model.attention.allocate(200)

    def make(*, launches_ahead: bool) -> Engine:
        return make_engine(
            {"main": model},
            {"main": PageCache(200, model.attention.page_size)},
            eos_token_ids=(3,),
            token_bytes=crowd_token_bytes(model.info.vocab_size),
            max_rows=16,
            tick_tokens=64,
            launches_ahead=launches_ahead,
        )

    engine = make(launches_ahead=True)
    answers = run(engine, FOUR)
    assert [a.said for a in answers] == [run(make(launches_ahead=False), [r])[0].said for r in FOUR]
    assert engine.turns.counters.groups > 8


# when it happens


class Noting(TableModel):
    """Notes its forwards, each with its rows."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(num_pages=200)
        self._events = events

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        self._events.append(f"forward {batch.num_rows}")
        return super().forward(batch, layers)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is launched and read: copies' numbers come to be only when they are waited for, as a GPU's do."""
    noted: list[str] = []

    class Late(Arriving):
        def __init__(self, tensor: torch.Tensor) -> None:
            self._tensor, self._at = tensor, sum(each.startswith("send") for each in noted)
            noted.append(f"send {self._at}")

        def wait(self) -> np.ndarray:
            noted.append(f"read {self._at}")
            return self._tensor.numpy()

    monkeypatch.setattr(decoding.device, "Arriving", Late)
    return noted


def test_each_group_is_launched_before_the_other_is_read(events: list[str]) -> None:
    requests = [beam(at, 5, max_tokens=4) for at in range(4)]
    assert [a.said for a in run(engine_of(Noting(events)), requests)] == alone(requests)
    assert events[: events.index("read 7") + 1] == [
        *("forward 2", "send 0", "forward 2", "send 1", "read 0"),  # the prompts, of which nothing could be guessed
        *("forward 4", "send 2", "read 1"),  # two beams of each of the first group
        *("forward 4", "send 3", "read 2"),
        *("forward 4", "send 4", "read 3"),
        *("forward 4", "send 5", "read 4"),
        *("forward 4", "send 6", "read 5"),
        *("forward 4", "send 7", "read 6"),
        "read 7",  # nobody of the first group is left
    ]


def test_nothing_is_launched_between_for_few_rows_or_where_it_is_off(events: list[str]) -> None:
    for engine, requests in ((engine_of(), FOUR[:1]), (engine_of(launches_ahead=False), FOUR)):
        run(engine, requests)
        assert engine.turns.counters.groups == 0


def test_rows_that_draw_are_launched_ahead_instead_all_of_them() -> None:
    engine = engine_of()
    drawing = Request((1, 2), Sampling(1), GREEDY, StoppingParams(10, ignore_eos=True))
    run(engine, [dataclasses.replace(drawing, prompt_ids=(at, 2)) for at in range(8)])
    assert engine.turns.counters.groups == 0
    assert engine.launch_ahead.counters.taken == 8 * 9


def test_who_is_left_when_others_end_is_launched_ahead_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ahead, "WORTH_A_FORWARD", 8)
    engine = engine_of(TableModel(num_pages=400))
    drawing = Request((1, 2), Sampling(1), GREEDY, StoppingParams(30, ignore_eos=True))
    requests = [dataclasses.replace(drawing, prompt_ids=(at, 2)) for at in range(4)] + FOUR
    assert [a.said for a in run(engine, requests)] == [
        run(engine_of(TableModel(num_pages=400), launches_ahead=False), [r])[0].said for r in requests
    ]
    assert engine.turns.counters.groups > 8
    assert engine.launch_ahead.counters.taken > 4 * 10


def test_what_is_launched_ahead_already_is_taken_before_groups_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that draw are half of all while the others' prompts run, and fewer from then on."""
    monkeypatch.setattr(launch_ahead, "WORTH_A_FORWARD", 1)
    engine = engine_of()
    drawing = Request((1, 2), Sampling(1), GREEDY, StoppingParams(5, ignore_eos=True))
    requests = [dataclasses.replace(drawing, prompt_ids=(at, 2)) for at in range(4)] + FOUR
    for at, request in enumerate(requests):
        engine.add(at, request, build)
    for _ in range(3):
        engine.tick()
    assert engine.turns.counters.groups == 2
    assert engine.launch_ahead.counters.rows == engine.launch_ahead.counters.taken == 4


def test_groups_that_have_become_unlike_are_made_anew() -> None:
    """Each other request ends early, which empties one group. Nobody is overtaken for ever."""
    engine = engine_of(TableModel(num_pages=400))
    requests = [beam(at, 5, max_tokens=4 if at % 2 else 40) for at in range(8)]
    assert [a.said for a in run(engine, requests)] == alone(requests)
    assert engine.turns.counters.groups > 60


def test_long_prompts_of_both_groups_do_not_run_behind_one_another() -> None:
    """No row waits for more than a tick's tokens between two of its own."""
    model = TableModel(num_pages=400)
    engine = engine_of(model, tick_tokens=SHORT_FEED * 4)
    for at, request in enumerate(FOUR):
        engine.add(at, request, build)
    engine.tick()
    for at in range(4, 12):
        engine.add(at, beam(*(at + i % 7 for i in range(100)), max_tokens=3), build)
    num_long = 0
    while engine.has_work:
        was_long = is_long(engine)
        engine.tick()
        num_long += is_long(engine)
        assert not (was_long and is_long(engine))
    assert num_long, "one group's may"


def is_long(engine: Engine) -> bool:
    """Whether a long prompt's tokens are under way."""
    spans = [w.row.num_pending for live in engine.scheduler.running if live.under_way for w in live.works]
    return any(num_pending > SHORT_FEED for num_pending in spans)


# what becomes of who is under way


def drive(engine: Engine, answers: dict[int, Answer]) -> None:
    for output in engine.tick():
        if output.request_id in answers:
            answers[output.request_id].take(output)
    engine.check_integrity()


def under_way(engine: Engine) -> list[int]:
    return [live.id for live in engine.scheduler.running if live.under_way is not None]


@pytest.mark.parametrize("is_whole_group", [False, True])
def test_who_is_cancelled_while_under_way_harms_nobody(is_whole_group: bool) -> None:
    engine = engine_of()
    answers = {at: Answer() for at in range(4)}
    for at, request in enumerate(FOUR):
        engine.add(at, request, build)
    for _ in range(4):
        drive(engine, answers)
    gone = under_way(engine)[: None if is_whole_group else 1]
    for at in gone:
        engine.cancel(at)
        del answers[at]
    assert len(gone) == (2 if is_whole_group else 1)
    while engine.has_work:
        drive(engine, answers)
    assert [a.said for a in answers.values()] == alone([FOUR[at] for at in answers])
    assert engine.used_pages == 0


def test_when_all_are_cancelled_the_next_one_starts_afresh() -> None:
    engine = engine_of()
    for at, request in enumerate(FOUR):
        engine.add(at, request, build)
    for _ in range(4):
        engine.tick()
    assert under_way(engine)
    for at in range(4):
        engine.cancel(at)
    assert not engine.has_work
    for at, request in enumerate(FOUR):
        engine.add(at, request, build)
    assert len(engine.tick()) == 4
    assert engine.tick_rows > 0, "no tick goes by for those who are gone"


def test_who_loses_its_pages_while_under_way_and_comes_back_at_once_is_run_again() -> None:
    engine = engine_of()
    answers = {at: Answer() for at in range(4)}
    for at, request in enumerate(FOUR):
        engine.add(at, request, build)
    for _ in range(3):
        drive(engine, answers)
        for at in under_way(engine)[:1]:
            engine.scheduler._preempt(next(live for live in engine.scheduler.running if live.id == at))
    while engine.has_work:
        drive(engine, answers)
    assert engine.scheduler.counters.preemptions >= 2
    assert [a.said for a in answers.values()] == alone(FOUR)


# what raises


class Raising(TableModel):
    """Raises what it is given, at the forwards that it is told."""

    def __init__(self, error: Callable[[], Exception], at: Sequence[int]) -> None:
        super().__init__(num_pages=200)
        self._error, self._at = error, at

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        hidden = super().forward(batch, layers)  # what it wrote before must not matter
        if self.num_forwards in self._at:
            raise self._error()
        return hidden


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [MemoryError, IndexError])
def test_a_launch_that_raises_is_forgotten_and_all_run_as_one_for_a_while(error: type[Exception], at: int) -> None:
    """The first two are launched in one tick, the later ones while another is under way."""
    engine = engine_of(Raising(error, [at]))
    answers = run(engine, FOUR)
    assert [a.said for a in answers] == alone(FOUR)
    assert engine.turns.counters.raised == 1
    assert engine.turns.counters.groups == at - 1
    assert engine.scheduler.counters.preemptions == 0


def test_a_launch_that_fails_for_want_of_memory_and_then_the_whole_makes_the_youngest_wait() -> None:
    engine = engine_of(Raising(MemoryError, [4, 5]))
    assert [a.said for a in run(engine, FOUR)] == alone(FOUR)
    assert engine.scheduler.counters.preemptions == 2


class Touchy(TableModel):
    """Raises for a batch in which an id is fed."""

    def __init__(self, poison: int) -> None:
        super().__init__(num_pages=200)
        self._poison = poison

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        hidden = super().forward(batch, layers)
        if self._poison in batch.ids_on(torch.device("cpu")):
            raise IndexError("boom")
        return hidden


@pytest.mark.parametrize("place", range(5))
def test_who_causes_an_exception_fails_in_whichever_group_it_is(place: int) -> None:
    poison = 9
    clean = [beam(20 + at, 5, max_tokens=4) for at in range(4)]
    engine = engine_of(Touchy(poison))
    answers = run(engine, [*clean[:place], beam(20, poison), *clean[place:]])
    assert [at for at, a in enumerate(answers) if a.failure] == [place]
    assert [a.said for at, a in enumerate(answers) if at != place] == alone(clean)
    assert engine.turns.counters.raised == 1
    assert engine.used_pages == 0


@pytest.mark.parametrize("error", [MemoryError, IndexError])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_reads_that_raise_when_their_turn_comes_are_run_again_plainly(
    error: type[Exception], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    collect = ReadSlice.collect

    def raising(self: ReadSlice) -> Any:
        calls.append(self)
        if len(calls) == at:
            raise error
        return collect(self)

    expected = alone(FOUR)
    monkeypatch.setattr(ReadSlice, "collect", raising)
    engine = engine_of()
    assert [a.said for a in run(engine, FOUR)] == expected
    assert engine.turns.counters.raised == 0
    assert engine.scheduler.counters.preemptions == (1 if error is MemoryError else 0)


def test_a_request_whose_reads_raise_when_their_turn_comes_is_the_only_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collect = ReadSlice.collect

    def raising(self: ReadSlice) -> Any:
        if any(read.seed == 7 and read.position == 5 for read in self._reads):
            raise IndexError
        return collect(self)

    expected = alone(FOUR)
    monkeypatch.setattr(ReadSlice, "collect", raising)
    for place in range(5):
        engine = engine_of()
        answers = run(engine, [*FOUR[:place], dataclasses.replace(beam(9, 9), seed=7), *FOUR[place:]])
        assert [at for at, a in enumerate(answers) if a.failure] == [place]
        assert [a.said for at, a in enumerate(answers) if at != place] == expected
