"""What one request does to its neighbours when a forward, a read or its strategy raises, or memory ends: nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence

import pytest
import torch

from decoding.attention.interface import Batch
from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.isolation import BROKEN_AFTER
from decoding.logits.pipeline import Pipelines
from decoding.model.loading import wrap
from decoding.seam import Draw, Feed, Move, Observation, Open, RowId, Strategy, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.table_model import TableHidden, TableModel, table_engine
from tests.decoding.tiny import VOCAB, tiny

POISON = 9
DRAW = Want((Draw(),))
LIMITS = StoppingParams(12, ignore_eos=True)
Build = Callable[[Request, Stopping, Tools], Strategy]


class Cramped(TableModel):
    """Memory for so many tokens a forward; `error` is how it says that there is no more."""

    def __init__(self, most_tokens: int, error: Exception) -> None:
        super().__init__(num_pages=200)
        self._most_tokens = most_tokens
        self._error = error
        self.num_refusals = 0

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        hidden = super().forward(batch, layers)  # what it wrote before it ran out must not matter
        if batch.num_tokens > self._most_tokens:
            self.num_refusals += 1
            raise self._error
        return hidden


class Touchy(TableModel):
    """Its forward raises for a batch that holds the poison, or always."""

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__(num_pages=200)
        self._is_broken = is_broken

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        hidden = super().forward(batch, layers)
        if self._is_broken or POISON in batch.ids_on(torch.device("cpu")):
            raise IndexError("boom")
        return hidden


def engine_of(model: TableModel) -> Engine:
    return table_engine(models={"main": model}, tick_tokens=4096)


def ask(*prompt: int, seed: int = 0) -> Request:
    return Request(prompt, Sampling(2), LogitsParams(0.8), LIMITS, LogprobsParams(2), seed=seed)


def clean(request: Request) -> bool:
    """Whether the request, alone, never meets the poison: neither in its prompt nor in what it says."""
    (answer,) = run(table_engine(), [request])
    return POISON not in request.prompt_ids and all(POISON not in c.token_ids for c in answer.choices.values())


NEIGHBOURS = [r for r in (ask(*range(20, 20 + n), seed=n) for n in range(3, 60)) if clean(r)][:7]


def alone(requests: Sequence[Request]) -> list[object]:
    return [run(table_engine(), [request])[0].said for request in requests]


def codes(answers: Sequence[Answer]) -> list[str | None]:
    return [answer.failure and answer.failure.code for answer in answers]


def of_the_device(code: int) -> torch.AcceleratorError:
    error = torch.AcceleratorError("CUDA error")
    error.error_code = code
    return error


OUT_OF_MEMORY = [
    of_the_device(2),
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_for_all_at_once_makes_the_youngest_wait_and_changes_no_answer(error: Exception) -> None:
    model = Cramped(20, error)
    engine = engine_of(model)
    answers = run(engine, NEIGHBOURS)
    assert model.num_refusals > 0
    assert engine.scheduler.counters.preemptions > 0
    assert [a.said for a in answers] == alone(NEIGHBOURS)
    assert engine.used_pages == 0


def test_whoever_made_room_is_not_taken_back_before_somebody_has_ended() -> None:
    """Else it would be fed its prompt and thrown out again at every tick."""
    model = Cramped(20, MemoryError())
    engine = engine_of(model)
    run(engine, NEIGHBOURS)
    assert model.num_refusals < 3 * len(NEIGHBOURS)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_request_too_large_for_the_memory_by_itself_is_the_one_that_fails(place: int) -> None:
    engine = engine_of(Cramped(70, MemoryError()))
    requests = [*NEIGHBOURS[:place], ask(*[i % 8 for i in range(90)]), *NEIGHBOURS[place:]]
    answers = run(engine, requests)
    assert codes(answers) == [None] * place + ["out_of_memory"] + [None] * (7 - place)
    assert [a.said for i, a in enumerate(answers) if i != place] == alone(NEIGHBOURS)
    assert engine.used_pages == 0


@pytest.mark.parametrize("place", [0, 3, 7])
def test_an_exception_in_a_forward_fails_the_request_that_causes_it(place: int) -> None:
    engine = engine_of(Touchy())
    answers = run(engine, [*NEIGHBOURS[:place], ask(3, POISON, 4), *NEIGHBOURS[place:]])
    assert codes(answers) == [None] * place + ["internal"] + [None] * (7 - place)
    assert [a.said for i, a in enumerate(answers) if i != place] == alone(NEIGHBOURS)
    assert isinstance(answers[place].failure and answers[place].failure.cause, IndexError)  # for the log


def test_many_bad_requests_one_after_the_other_do_not_end_the_engine() -> None:
    engine = engine_of(Touchy())
    for _ in range(3 * BROKEN_AFTER):
        answers = run(engine, [ask(3, POISON, 4), NEIGHBOURS[0]])
        assert codes(answers) == ["internal", None]


def test_a_model_that_fails_everybody_is_broken_and_says_so() -> None:
    """The worker ends then, and the next one may be better: a device that is lost stays lost."""
    engine = engine_of(Touchy(is_broken=True))
    with pytest.raises(IndexError, match="boom"):
        run(engine, NEIGHBOURS)


class Failing(TableModel):
    """Its device fails for the first batch and answers nothing from then on."""

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> TableHidden:
        self.num_forwards += 1
        raise of_the_device(700)  # an illegal address


@pytest.mark.parametrize("requests", [NEIGHBOURS, NEIGHBOURS[:1]])
def test_a_device_that_failed_ends_the_engine_at_once(requests: Sequence[Request]) -> None:
    """Nobody is told that his request failed, and nobody is tried alone: the worker must be started anew."""
    model = Failing()
    with pytest.raises(torch.AcceleratorError):
        run(engine_of(model), requests)
    assert model.num_forwards == 1


class Looking:
    """Looks at scores that it kept on a device that failed."""

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        self._prompt = request.prompt_ids

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((Feed(Open(), self._prompt, want=DRAW),))

    def step(self, seen: Observation) -> Move:
        raise of_the_device(710)  # a failed assertion


def test_a_device_that_a_strategy_finds_to_have_failed_ends_the_engine_too() -> None:
    engine = table_engine()
    engine.add(0, NEIGHBOURS[0], Looking)
    with pytest.raises(torch.AcceleratorError):
        engine.tick()


def test_pipelines_that_cannot_be_built_fail_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    built = Pipelines.build

    def touchy(self: Pipelines, params: LogitsParams, stopping: StoppingParams) -> object:
        if params.min_p:
            raise OverflowError
        return built(self, params, stopping)

    monkeypatch.setattr(Pipelines, "build", touchy)
    bad = dataclasses.replace(NEIGHBOURS[0], logits=LogitsParams(0.8, min_p=0.5))
    answers = run(table_engine(), [bad, NEIGHBOURS[1]])
    assert codes(answers) == ["internal", None]


class Raising:
    """Forks its row; two steps later its move names a row that there is not, after a fork that there is."""

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        self._moves = self._play(request.prompt_ids)

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return next(self._moves)

    def step(self, seen: Observation) -> Move:
        return self._moves.send(seen)

    def _play(self, prompt: Sequence[int]) -> Generator[Move, Observation, None]:
        seen = yield Move((Feed(Open(), tuple(prompt), want=DRAW),))
        row = seen.rows[0].row
        seen = yield Move(tuple(Feed(row, (token,), want=DRAW) for token in (1, 2)))
        row = seen.rows[0].row
        yield Move((Feed(row, (1,)), Feed(row, (2,)), Feed(RowId(10**9), (3,))))


def test_a_strategy_that_raises_amid_its_move_leaves_no_page_behind() -> None:
    engine = table_engine()
    answers = [Answer() for _ in range(3)]
    engine.add(0, NEIGHBOURS[0], build)
    engine.add(1, ask(3, 4, 5, 6, 7), Raising)
    engine.add(2, NEIGHBOURS[1], build)
    while engine.has_work:
        for output in engine.tick():
            answers[output.request_id].take(output)
        engine.check_integrity()
    assert codes(answers) == [None, "internal", None]
    assert [answers[0].said, answers[2].said] == alone(NEIGHBOURS[:2])
    assert engine.used_pages == 0


@pytest.mark.parametrize(
    ("neighbour_seed", "logits"),
    [(1, LogitsParams(temperature=0)), (2, LogitsParams(0.9, top_k=20))],
)
def test_a_row_that_may_say_nothing_fails_alone(neighbour_seed: int, logits: LogitsParams) -> None:
    """Every id is excluded: only one is allowed, and that one is a bad word."""
    masked = Request((1, 2, 3), logits=LogitsParams(0.9, allowed_token_ids=(5,), bad_words=((5,),)), stopping=LIMITS)
    neighbour = Request((7, 8, 7), logits=logits, stopping=LIMITS, logprobs=LogprobsParams(3), seed=neighbour_seed)
    answers = run(table_engine(), [masked, neighbour])
    assert codes(answers) == ["nothing_to_draw", None]
    assert answers[1].said == run(table_engine(), [neighbour])[0].said


def real_engine(poisoned: int) -> Engine:
    """A tiny Llama in which one id's embedding is not a number, with few pages, so that they change hands."""
    network = tiny("llama")
    with torch.no_grad():
        network.get_input_embeddings().weight[poisoned] = float("nan")
    model = wrap(network)
    model.attention.allocate(24)
    return make_engine({"main": model}, {"main": PageCache(24, model.attention.page_size)}, eos_token_ids=(2,))


def test_a_real_model_that_yields_nan_harms_neither_neighbours_nor_who_gets_its_pages_next() -> None:
    poisoned = VOCAB - 1
    logits = LogitsParams(0.9, logit_bias=((poisoned, -100.0),))
    fine = [
        Request(tuple(range(3, 3 + n)), Sampling(2), logits, StoppingParams(20, ignore_eos=True), LogprobsParams(2), s)
        for n, s in ((5, 1), (17, 2), (30, 3))
    ]
    bad = Request((*range(4, 40), poisoned, 5, 6), stopping=LIMITS)
    with torch.inference_mode():
        expected = [run(real_engine(poisoned), [request])[0].said for request in fine]
        engine = real_engine(poisoned)
        answers = run(engine, [fine[0], bad, fine[1], bad, fine[2]])
        assert codes(answers) == [None, "nan_logits", None, "nan_logits", None]
        assert [a.said for a in answers[::2]] == expected
        for request, said in zip(fine, expected, strict=True):
            assert run(engine, [request])[0].said == said
