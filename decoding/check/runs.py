"""Requests run alone and in a crowd, each with the record of its strategy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding.check.answer import Answer
from decoding.check.record import Record, exact, recording
from decoding.contract.params import Request
from decoding.engine.engine import Engine
from decoding.engine.output import Failure
from decoding.strategies import Build

MAX_TICKS = 20_000
PATIENCE = 0.4
"""How likely a tick is followed by what disturbs."""


@dataclass(slots=True)
class Run:
    """One request's. num_disturbed: how often it was disturbed, of the kind that the run is for."""

    answer: Answer = field(default_factory=Answer)
    record: Record = field(default_factory=Record)
    num_disturbed: int = 0

    @property
    def failure(self) -> Failure | None:
        return self.answer.failure

    @property
    def said(self) -> Any:
        answer = self.answer
        return exact((answer.choices, answer.prompt, answer.vector, answer.failure and answer.failure.code))


class Endless(RuntimeError):
    """A request that comes to no end."""


def run_alone(engine: Engine, request: Request, build: Build, *, preempts: random.Random | None = None) -> Run:
    """preempts: its rows lose their pages at random moments. Raises Endless."""
    run = Run()
    engine.add(0, request, recording(build, run.record))
    for _ in range(MAX_TICKS):
        if not engine.has_work:
            engine.check_integrity()
            return run
        for output in engine.tick():
            run.answer.take(output)
        if preempts is not None and preempts.random() < PATIENCE:
            run.num_disturbed += len(engine.scheduler.running)
            engine.scheduler.give_way(list(engine.scheduler.running))
    raise Endless(f"it goes on after {MAX_TICKS} ticks")


def run_crowd(
    engine: Engine, requests: Sequence[Request], build: Build, rng: random.Random, *, cancels: bool = False
) -> dict[int, Run]:
    """They arrive in bursts between ticks. cancels: every third leaves early; only the others' runs are returned.

    Raises Endless, and cache.IntegrityError where a page is nobody's or two people's.
    """
    runs = {i: Run() for i in range(len(requests))}
    coming, ages = list(runs), dict[int, int]()
    doomed = {i: rng.randrange(1, 8) for i in runs if cancels and rng.random() < 0.34}
    for _ in range(MAX_TICKS):
        if not (coming or engine.has_work):
            return {i: run for i, run in runs.items() if i not in doomed}
        while coming and (rng.random() < 0.5 or not engine.has_work):
            index = coming.pop(0)
            engine.add(index, requests[index], recording(build, runs[index].record))
            ages[index] = 0
        for output in engine.tick():
            runs[output.request_id].answer.take(output)
        for index in ages:
            ages[index] += 1
            if doomed.get(index) == ages[index]:
                engine.cancel(index)
        engine.check_integrity()
    raise Endless(f"they go on after {MAX_TICKS} ticks")
