"""Where a tick's time goes: the dearest kernels of a decode step and of a mixed tick, and the host's share by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from decoding.attention.interface import Batch
from loadtest.engine.machine import synchronize
from loadtest.engine.stopwatch import profile as host_profile
from loadtest.gpu_accept.report import Figure
from loadtest.gpu_accept.session import Session

DEAREST = 12


def kernels(session: Session) -> Iterator[Figure]:
    """A recorded decode step of many rows, and the same rows beside a prompt."""
    bench, scale = session.subject.bench, session.scale
    rows = scale.rows[-2]
    decode = _batch(session, [1] * rows, scale.prompt)
    mixed = _batch(session, [scale.prompt // 2] + [1] * (rows - 1), scale.prompt)
    for name, batch in (("decode", decode), ("mixed", mixed)):
        yield from _dearest(session, f"{name}, {rows} rows", lambda batch=batch: bench.model.forward(batch))  # type: ignore[misc]


def _batch(session: Session, counts: list[int], context: int) -> Batch:
    """Rows that feed so many tokens, the last of `context` positions each."""
    bench = session.subject.bench
    size = bench.model.attention.page_size
    each = -(-context // size)
    tables = 1 + np.arange(len(counts) * each).reshape(-1, each)
    fed = np.array(counts)
    ids = np.random.default_rng(1).integers(0, bench.model.info.vocab_size, fed.sum())
    return Batch.of_rows(ids, context - fed, fed, tables, size)


def _dearest(session: Session, name: str, work: Callable[[], object]) -> Iterator[Figure]:
    work()
    work()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if session.is_gpu else [])]
    with torch.profiler.profile(activities=kinds) as recorded:
        work()
        synchronize(session.device)
    spent = sorted(((_microseconds(session, each), each) for each in recorded.key_averages()), key=lambda p: -p[0])
    launched = [(us, each) for us, each in spent if us > 0]
    total = sum(us for us, _ in launched)
    count = sum(each.count for _, each in launched)
    yield Figure(f"{name}: all", total, "us", note=f"{count} kernels")
    for us, each in launched[:DEAREST]:
        yield Figure(str(each.key)[:34], us, "us", note=f"{us / total:.0%}, {each.count} times")


def _microseconds(session: Session, event: Any) -> float:
    """Of the event itself, on the device."""
    if not session.is_gpu:
        return float(event.self_cpu_time_total)
    is_kernel = "CUDA" in str(event.device_type)  # what launches one is told the time of its kernels, too
    return float(event.self_device_time_total) if is_kernel else 0.0


def host(session: Session) -> Iterator[Figure]:
    """The engine's pages are gone afterwards, and its model is watched for good."""
    scale = session.scale
    rows = scale.rows[-1]
    whole, parts = host_profile(session.subject.bench.model, rows, scale.prompt, scale.new)
    yield Figure(f"tick, {rows} rows", whole, "ms", note="the host's share by stage:")
    for stage, milliseconds in parts.items():
        yield Figure(f"  {stage}", milliseconds * 1e3 / rows, "us/row")
