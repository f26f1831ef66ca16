"""Runs steps one after the other under one deadline; what one fails of ends no other.

A step is begun only where the time and the memory it is expected to take are left. One that overruns the deadline is
cut: no Python code can be stopped from outside while it waits for a GPU, so the process ends with it, all it found
before being written.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.gpu_accept.report import Line, Report, StepReport, shown


class Skip(Exception):
    """Raised by a step that cannot run here; says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """seconds, num_bytes: what it is expected to take of the time and of the device's memory. is_check: it may not
    fail."""

    name: str
    run: Callable[[], Iterable[Line]]
    seconds: float
    num_bytes: int = 0
    is_check: bool = False


@dataclass(frozen=True, slots=True)
class Means:
    """What there is to spend. deadline: on the clock. free_bytes: of the device's memory; None: nobody knows."""

    deadline: float
    free_bytes: Callable[[], int | None]
    clock: Callable[[], float] = time.monotonic

    @property
    def seconds_left(self) -> float:
        return self.deadline - self.clock()


def run(steps: Sequence[Step], report: Report, means: Means, show: Callable[[str], None]) -> None:
    for step in steps:
        record = StepReport(step.name, step.is_check)
        report.steps.append(record)
        record.skipped = _unaffordable(step, means)
        if record.skipped is None:
            show(f"- {step.name}")
            _run(step, record, report, means, show)
        if record.skipped is not None:
            show(f"- {step.name} skipped: {record.skipped}")
        report.write()


def _unaffordable(step: Step, means: Means) -> str | None:
    left, free = means.seconds_left, means.free_bytes()
    if left < step.seconds:
        return f"takes about {step.seconds:.0f} s, {max(left, 0):.0f} s are left"
    if free is not None and free < step.num_bytes:
        return f"takes about {step.num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return None


def _run(step: Step, record: StepReport, report: Report, means: Means, show: Callable[[str], None]) -> None:
    started = means.clock()
    try:
        for line in step.run():
            record.lines.append(line)
            show(f"  {shown(line)}")
            report.write()
    except Skip as reason:
        record.skipped = str(reason)
    except Exception as error:
        record.error = f"{type(error).__name__}: {error}"[:300]
        show(traceback.format_exc())
    record.seconds = means.clock() - started
    if record.error is not None:
        gc.collect()  # the traceback held what the step had on the device


def cut_at_deadline(report: Report, means: Means, end: Callable[[], None]) -> threading.Timer:
    """Started; records the step that runs at the deadline as cut, and ends. Cancel it when all is done."""

    def cut() -> None:
        if report.steps and report.steps[-1].seconds is None:
            report.steps[-1].skipped = "cut at the deadline"
        report.write()
        end()

    timer = threading.Timer(max(means.seconds_left, 0), cut)
    timer.daemon = True
    timer.start()
    return timer


def end_now(report: Report, show: Callable[[str], None]) -> None:
    """The table, and the process's end."""
    show(report.table())
    sys.stdout.flush()
    os._exit(0 if report.is_right else 1)
