"""The engine over a fake GPU: a crowd of every strategy says what it says on a CPU, with its forwards launched ahead,
its decode steps recorded, and the host waiting for nothing but the numbers it asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import decoding.device
from decoding.contract.params import Beam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.device import Arriving
from decoding.engine import reading, turns
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.compatibility import UnsupportedModel
from decoding.model.graphs import CudaCapture
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.seam import Move, Observation
from decoding.strategies.assisted import AssistedStrategy
from decoding.strategies.beam import BeamStrategy
from loadtest.gpu_accept.strategies import difference
from tests.decoding.crowd import crowd_token_bytes, random_requests, run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.fake_gpu.device import FakeGPU, Waits, fake_gpu, pinned, refusing_waits
from tests.decoding.fake_gpu.test_models import plain
from tests.decoding.tiny import tiny

PAGES = 40


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    with torch.inference_mode(), fake_gpu(monkeypatch) as made:
        yield made


def models(gpu: FakeGPU | None = None) -> dict[str, Model]:
    found = {}
    for seed, name in enumerate(("main", "draft")):
        lm = tiny("llama", seed=seed)
        if gpu is not None:
            gpu.move(lm)
        found[name] = wrap(lm, attention=plain, capture=None if gpu is None else CudaCapture())
        found[name].attention.allocate(PAGES)
    return found


def engine_of(placed: dict[str, Model], *, is_ahead: bool) -> Engine:
    return make_engine(
        placed,
        {name: PageCache(PAGES, model.attention.page_size) for name, model in placed.items()},
        eos_token_ids=(3,),
        token_bytes=crowd_token_bytes(97),
        max_rows=16,
        tick_tokens=64,
        launches_ahead=is_ahead,
    )


def crowd(placed: dict[str, Model], requests: list[Request], *, is_ahead: bool) -> dict[int, Answer]:
    return run_crowd(engine_of(placed, is_ahead=is_ahead), requests, random.Random(4))


def let_wait(monkeypatch: pytest.MonkeyPatch, gpu: FakeGPU, owner: Any, name: str) -> None:
    """Where the host is known to wait: for the one token that takes a rejected draft's place."""
    whole = getattr(owner, name)

    def waiting(*args: Any, **options: Any) -> Any:
        before, gpu.stream.refuses_waits = gpu.stream.refuses_waits, False
        try:
            return whole(*args, **options)
        finally:
            gpu.stream.refuses_waits = before

    monkeypatch.setattr(owner, name, waiting)


def test_every_strategy_says_on_a_gpu_what_it_says_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(random.Random(4), 20, 97)
    with torch.inference_mode():
        expected = crowd(models(), requests, is_ahead=False)
        with fake_gpu(monkeypatch) as gpu:
            placed = models(gpu)
            let_wait(monkeypatch, gpu, AssistedStrategy, "_rejection_sampled")
            crowd(placed, requests, is_ahead=True)  # a recording may wait while it is made
            with refusing_waits(gpu):
                found = crowd(placed, requests, is_ahead=True)
    assert len({requests[at].strategy.NAME for at in found}) > 12
    wrong = {at: difference(found[at], expected[at]) for at in found.keys() & expected.keys()}
    assert not {at: (requests[at].strategy.NAME, reason) for at, reason in wrong.items() if reason is not None}


# planted faults


def drawing() -> list[Request]:
    stopping, logprobs = StoppingParams(12, ignore_eos=True), LogprobsParams(output=1)
    return [
        Request((5, 6, 7 + at), logits=LogitsParams(1.0, top_k=9), stopping=stopping, logprobs=logprobs, seed=at)
        for at in range(4)
    ]


def answered(gpu: FakeGPU | None) -> list[Answer]:
    return run(engine_of(models(gpu), is_ahead=gpu is not None), drawing())


def same(found: list[Answer], expected: list[Answer]) -> bool:
    return all(difference(one, other) is None for one, other in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    with torch.inference_mode():
        return answered(None)


def test_nothing_planted_is_found(gpu: FakeGPU, expected: list[Answer]) -> None:
    placed = models(gpu)
    run(engine_of(placed, is_ahead=True), drawing())
    engine = engine_of(placed, is_ahead=True)
    with refusing_waits(gpu):
        assert same(run(engine, drawing()), expected)
    assert engine.launch_ahead.counters.taken > 20
    assert engine.launch_ahead.counters.raised == 0


def test_a_read_that_looks_is_found(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = reading.draw

    def looking(scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        return draw(scores, *rest) if scores.isfinite().any() else scores

    monkeypatch.setattr(reading, "draw", looking)
    placed = models(gpu)
    run(engine_of(placed, is_ahead=True), drawing()[:2])
    with refusing_waits(gpu):  # of two: after four failures in a row the model counts as broken
        answers = run(engine_of(placed, is_ahead=True), drawing()[:2])
    assert all(answer.failure is not None and isinstance(answer.failure.cause, Waits) for answer in answers)


def test_a_number_that_is_read_before_it_is_there_is_found(
    gpu: FakeGPU, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arriving, "wait", lambda self: self._host.numpy())
    answers = run(engine_of(models(gpu), is_ahead=True), drawing()[:2])
    assert not same(answers, expected[:2])


def test_an_event_that_is_recorded_too_early_is_found(
    gpu: FakeGPU, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(Arriving):
        def __init__(self, tensor: torch.Tensor) -> None:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()
            self._host.copy_(tensor, non_blocking=True)

    monkeypatch.setattr(decoding.device, "Arriving", Early)
    answers = run(engine_of(models(gpu), is_ahead=True), drawing()[:2])
    assert not same(answers, expected[:2])


def test_a_staging_buffer_that_is_used_again_too_early_is_found(
    gpu: FakeGPU, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One buffer for all copies of a size, written again while the copy before is still to run."""
    buffers: dict[Any, torch.Tensor] = {}

    def staged(array: np.ndarray, device: torch.device) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        buffer = buffers.setdefault((tensor.shape, tensor.dtype), pinned(torch.empty_like(tensor)))
        return buffer.copy_(tensor).to(device, non_blocking=True)

    monkeypatch.setattr(decoding.device, "to_device", staged)  # indices go through it
    assert not same(answered(gpu), expected)


def test_a_recording_that_does_nothing_again_is_found(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check when a model is loaded, which runs recorded."""
    replayed = []

    graph = torch.cuda.CUDAGraph

    def forgetting(*_: Any) -> Any:
        made = graph()
        replayed.append(made)
        monkeypatch.setattr(made, "replay", lambda: None)
        return made

    monkeypatch.setattr(torch.cuda, "CUDAGraph", forgetting)
    with pytest.raises(UnsupportedModel, match="disagrees with itself"):
        answered(gpu)
    assert replayed


# two groups in turn


def beams() -> list[Request]:
    stopping, logprobs = StoppingParams(8, ignore_eos=True), LogprobsParams(output=1)
    return [Request((5, 6, 7 + at), Beam(1, 3), stopping=stopping, logprobs=logprobs) for at in range(4)]


def test_the_device_has_work_while_the_host_advances_beams(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted at every step of a strategy whether something is launched that has not run."""
    with torch.inference_mode():
        expected = run(engine_of(models(), is_ahead=False), beams())
    placed, step = models(gpu), BeamStrategy.step
    is_busy: list[bool] = []

    def noting(self: BeamStrategy, seen: Observation) -> Move:
        is_busy.append(bool(gpu.stream.waiting))
        return step(self, seen)

    monkeypatch.setattr(BeamStrategy, "step", noting)
    run(engine_of(placed, is_ahead=True), beams())
    assert not any(is_busy), "few rows run as one"
    monkeypatch.setattr(turns, "GROUP_ROWS", 2)
    run(engine_of(placed, is_ahead=True), beams())  # a recording may wait while it is made
    is_busy.clear()
    with refusing_waits(gpu):
        assert same(run(engine_of(placed, is_ahead=True), beams()), expected)
    assert len(is_busy) == 4 * 8
    assert is_busy.count(False) == 2, "the last step of the group that is read last"


def test_every_strategy_says_in_turns_on_a_gpu_what_it_says_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "GROUP_ROWS", 2)
    requests = random_requests(random.Random(7), 12, 97)
    with torch.inference_mode():
        expected = crowd(models(), requests, is_ahead=False)
        with fake_gpu(monkeypatch) as gpu:
            engine = engine_of(models(gpu), is_ahead=True)
            found = run_crowd(engine, requests, random.Random(4))
    assert engine.turns.counters.groups > 10
    wrong = {at: difference(found[at], expected[at]) for at in found.keys() & expected.keys()}
    assert not {at: (requests[at].strategy.NAME, reason) for at, reason in wrong.items() if reason is not None}
