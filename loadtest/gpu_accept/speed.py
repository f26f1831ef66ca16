"""How fast a model of a real shape runs in the engine, as shares of what reading and multiplying take at the least."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from decoding.contract.params import Beam, LogitsParams, Request, StoppingParams
from loadtest.engine.bench import GREEDY
from loadtest.engine.machine import Box, seconds_each
from loadtest.gpu_accept.report import Figure
from loadtest.gpu_accept.session import Session, Subject
from loadtest.gpu_accept.shapes import Work

PRODUCTS = 8
"""One after the other, of weights that no cache holds together."""


def decode(session: Session, num_rows: int) -> Iterator[Figure]:
    """What a step takes beyond its forward is reads, and whatever of the host's time is not hidden."""
    subject, box, load = session.subject, session.box, session.subject.bench.load
    bench, context = subject.bench, load.prompt + load.new // 2
    floor = decode_floor(subject.work, box, num_rows, context)
    bench.run(bench.requests(num_rows, seed=num_rows))
    run = bench.run(bench.requests(num_rows, seed=num_rows + 1000))
    yield from _noted(session, subject, Figure(f"decode step, {num_rows} rows", run.decode_seconds(num_rows) * 1e3,
                                               "ms", floor * 1e3))  # fmt: skip
    whole = num_rows * load.new / run.seconds
    yield Figure(f"{num_rows} rows, {load.prompt} in, {load.new} out", whole, "tok/s", num_rows / floor)
    alone = bench.forward_seconds(num_rows, context)
    yield Figure(f"forward alone, {num_rows} rows", alone * 1e3, "ms", floor * 1e3)


def decode_floor(work: Work, box: Box, num_rows: int, context: int) -> float:
    """Seconds of a step in which every row feeds a token: read everything once, multiply by everything."""
    read = work.weight_bytes + num_rows * context * work.kv_bytes_per_token
    multiplied = 2 * num_rows * (work.body_parameters + work.head_parameters + 2 * context * work.attention_width)
    return max(read / box.bytes_per_second, multiplied / box.flops_per_second)


def prefill_floor(work: Work, box: Box, length: int) -> float:
    """Seconds of one prompt; each position attends to half of them, on average."""
    attended = 2 * length * length * work.attention_width
    multiplied = 2 * (length * work.body_parameters + work.head_parameters) + attended
    return max(multiplied / box.flops_per_second, work.weight_bytes / box.bytes_per_second)


def prefill(session: Session, length: int) -> Iterator[Figure]:
    subject = session.subject
    bench, stopping = subject.bench, StoppingParams(1, ignore_eos=True)
    runs = []
    for seed in range(21, 25):
        (prompt,) = bench.prompts(1, length, seed)
        runs.append(bench.run([Request(prompt, logits=GREEDY, stopping=stopping)]).seconds)
    floor = prefill_floor(subject.work, session.box, length)
    found = Figure(f"prefill of {length}", statistics.median(runs[1:]) * 1e3, "ms", floor * 1e3)
    yield from _noted(session, subject, found)


def arrivals(session: Session) -> Iterator[Figure]:
    """As many rows as there is room for, another request whenever one ends: no tick is a plain decode step."""
    subject = session.subject
    bench, load, num_rows = subject.bench, subject.bench.load, max(session.scale.rows)
    requests = bench.requests(session.scale.arrivals, seed=41)
    shortest = max(1, load.new // 4)
    staggered = [
        replace(request, stopping=replace(request.stopping, max_tokens=shortest + at * 37 % (load.new - shortest + 1)))
        for at, request in enumerate(requests)
    ]
    counters = bench.engine.launch_ahead.counters
    before = counters.taken
    steady = bench.steady(staggered, num_rows)
    context = load.prompt + load.new // 4
    floor = decode_floor(subject.work, session.box, num_rows, context)
    arriving = sum(tick.tokens > tick.rows for tick in steady.ticks) / len(steady.ticks)
    ahead = (counters.taken - before) / steady.num_tokens_in_all
    note = f"{arriving:.0%} of ticks with arrivals, {ahead:.0%} of tokens from a forward launched ahead"
    yield Figure(f"arrivals at {num_rows} rows", steady.tokens_per_second, "tok/s", num_rows / floor, note)
    times = sorted(tick.seconds * 1e3 for tick in steady.ticks)
    yield Figure("tick with arrivals, median", statistics.median(times), "ms", floor * 1e3)
    yield Figure("tick with arrivals, 95th of 100", times[int(0.95 * (len(times) - 1))], "ms")


def beams(session: Session) -> Iterator[Figure]:
    """Rows per second of beam search, and of as many rows that sample."""
    bench = session.subject.bench
    width, count = session.scale.beams
    num_rows = width * count
    searching = [
        replace(request, strategy=Beam(num_beams=width, early_stopping="never"))
        for request in bench.requests(count, seed=31)
    ]
    drawing = [replace(r, logits=LogitsParams(), seed=at) for at, r in enumerate(bench.requests(num_rows, seed=32))]
    speeds = []
    for requests in (searching, drawing):
        bench.run(requests)
        speeds.append(num_rows / bench.run(requests).decode_seconds(num_rows))
    note = f"{speeds[0] / speeds[1]:.0%} of sampling"
    yield Figure(f"beams, {count} x {width}", speeds[0], "tok/s", note=note)
    yield Figure(f"sampling, {num_rows} rows", speeds[1], "tok/s")


def long_context(session: Session) -> Iterator[Figure]:
    """The forward alone, over keys and values of random numbers. The engine's pages are gone afterwards."""
    subject, scale = session.subject, session.scale
    attention = subject.bench.model.attention
    attention.allocate(0)
    attention.allocate(1 + max(scale.context_rows) * -(-scale.context // attention.page_size))
    for pages in (*attention.pages.keys, *attention.pages.values):
        pages.normal_()
    for num_rows in scale.context_rows:
        floor = decode_floor(subject.work, session.box, num_rows, scale.context)
        alone = subject.bench.forward_seconds(num_rows, scale.context)
        name = f"forward alone, {num_rows} x {scale.context}"
        yield Figure(name, alone * 1e3, "ms", floor * 1e3)
    session.close()


def products(session: Session) -> Iterator[Figure]:
    """What a plain product of a layer's size reaches at few rows and many."""
    width, many = (4096, 8192) if session.is_gpu else (64, 512)
    weights = torch.randn(PRODUCTS, width, width, device=session.device).to(session.dtype)
    for rows in (1, 64, 256, many):
        inputs = torch.randn(rows, width, device=session.device).to(session.dtype)
        each = seconds_each([partial(torch.mm, inputs, weight) for weight in weights], session.device)
        read = weights[0].numel() * weights.element_size() / session.box.bytes_per_second
        floor = max(2 * rows * width * width / session.box.flops_per_second, read)
        yield Figure(f"product, {rows} x {width} x {width}", each * 1e6, "us", floor * 1e6)


def _noted(session: Session, subject: Subject, figure: Figure) -> Iterator[Figure]:
    """Remembers what the shape reaches by default, and says of another way how it compares."""
    if not subject.is_batch_invariant:
        session.plain.setdefault(subject.shape, {})[figure.name] = figure.value
        yield figure
        return
    plain = session.plain.get(subject.shape, {}).get(figure.name)
    yield figure if plain is None else replace(figure, note=f"{figure.value / plain - 1:+.0%} of time")
