"""The steps in their order, what each is expected to take, and which of them say whether all is right.

First what is right, cheapest first, then the small model's speed, then the large one's: whatever the deadline cuts, the
most telling is known by then. The seconds are guesses at a GPU of today, kernels' compilation included.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from loadtest.engine.machine import measure
from loadtest.gpu_accept import answers, kernels, memory, profiling, speed, strategies, sweep
from loadtest.gpu_accept.report import Check, Figure
from loadtest.gpu_accept.runner import Step
from loadtest.gpu_accept.session import Session
from loadtest.gpu_accept.shapes import cache_bytes_per_token, num_parameters

LARGE = 2_000_000_000
"""Parameters from which a model's steps take about twice as long."""


def steps(session: Session) -> list[Step]:
    first, *others = session.scale.shapes
    return [
        *_of_kernels(session),
        Step("strategies", partial(strategies.crowd, session), _cost(session, 50), is_check=True),
        Step("shortage of memory", partial(memory.shortage, session), _cost(session, 10), 4 << 30, is_check=True),
        *_of_shape(session, first),
        *_of_invariance(session, first),
        *(step for shape in others for step in _of_shape(session, shape)),
        Step("sweep of decode's kernel", partial(sweep.sweep, session), _cost(session, 40), 8 << 30),
        *(step for shape in others for step in _of_invariance(session, shape)),
    ]


def _of_kernels(session: Session) -> Iterator[Step]:
    yield Step("machine", partial(machine, session), _cost(session, 5))
    yield Step("products", partial(speed.products, session), _cost(session, 3))
    yield Step("attention", partial(kernels.attention, session), _cost(session, 60), is_check=True)
    yield Step("k best", partial(kernels.best, session), _cost(session, 15), is_check=True)
    yield Step("copies of pages", partial(kernels.copies, session), _cost(session, 2), is_check=True)


def _of_shape(session: Session, shape: str) -> Iterator[Step]:
    scale, times = session.scale, _times(shape)
    yield _build(session, shape)
    yield Step(f"{shape} answers", partial(answers.check, session), _cost(session, 10 * times), is_check=True)
    for rows in scale.rows:
        yield Step(f"{shape} decode, {rows} rows", partial(speed.decode, session, rows), _cost(session, 4 * times))
    for length in scale.prefill:
        yield Step(f"{shape} prefill of {length}", partial(speed.prefill, session, length), _cost(session, 2 * times))
    yield Step(f"{shape} arrivals", partial(speed.arrivals, session), _cost(session, 8 * times))
    yield Step(f"{shape} beams", partial(speed.beams, session), _cost(session, 10 * times))
    yield Step(f"{shape} kernels of a tick", partial(profiling.kernels, session), _cost(session, 3 * times))
    yield Step(f"{shape} stages of a tick", partial(profiling.host, session), _cost(session, 4 * times))
    num_bytes = cache_bytes_per_token(shape, session.dtype) * scale.context * max(scale.context_rows)
    long = partial(speed.long_context, session)
    yield Step(f"{shape} long context", long, _cost(session, 4 * times), num_bytes)


def _of_invariance(session: Session, shape: str) -> Iterator[Step]:
    """What it costs that a row's bits do not depend on the batch."""
    name, times = f"{shape} batch-invariant", _times(shape)
    yield _build(session, shape, is_batch_invariant=True)
    yield Step(f"{name} answers", partial(answers.check, session), _cost(session, 10 * times), is_check=True)
    for rows in session.scale.rows:
        yield Step(f"{name} decode, {rows} rows", partial(speed.decode, session, rows), _cost(session, 4 * times))
    for length in session.scale.prefill:
        yield Step(f"{name} prefill of {length}", partial(speed.prefill, session, length), _cost(session, 3 * times))


def _build(session: Session, shape: str, *, is_batch_invariant: bool = False) -> Step:
    name = f"{shape} batch-invariant" if is_batch_invariant else shape
    pages = session.load().num_pages(16) * 16 * cache_bytes_per_token(shape, session.dtype)
    num_bytes = int(1.3 * num_parameters(shape) * session.dtype.itemsize) + pages
    run = partial(build, session, shape, is_batch_invariant=is_batch_invariant)
    return Step(f"{name} built", run, _cost(session, 6 * _times(shape)), num_bytes, is_check=True)


def machine(session: Session) -> Iterator[Figure]:
    box = session.measured = measure(session.device, session.dtype)
    yield Figure("copied, read and written", box.bytes_per_second / 1e9, "GB/s")
    yield Figure("multiplied", box.flops_per_second / 1e12, "TFLOP/s")


def build(session: Session, shape: str, *, is_batch_invariant: bool) -> Iterator[Check]:
    subject = session.open(shape, is_batch_invariant=is_batch_invariant)
    size = subject.work.weight_bytes / 1e9
    yield Check("built", True, f"{size:.2f} GB a step, {type(subject.bench.model.attention).__name__}")


def _times(shape: str) -> int:
    return 2 if num_parameters(shape) > LARGE else 1


def _cost(session: Session, seconds: float) -> float:
    return seconds * session.scale.costs
