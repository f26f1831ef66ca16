"""One run: plays a scenario against one client, warm-up first, and keeps every outcome.

Knows neither HTTP nor tables: it calls `complete` and tells a watcher of each answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from loadtest.outcome import Outcome
from loadtest.prompt import Phase, Prompts
from loadtest.scenario import Closed, Open, Scenario
from loadtest.statistics import Summary, summarise


class Completer(Protocol):
    """What a run needs of a client."""

    async def complete(self, prompt: str, max_tokens: int, started: float | None = None, beams: int = 1) -> Outcome: ...


Watcher = Callable[[Phase, Outcome], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What was played and what came of it. The seed gives the same prompts and arrivals again."""

    scenario: Scenario
    seed: int
    outcomes: tuple[Outcome, ...]
    summary: Summary


class Player:
    """Sends one scenario's requests; `watch` hears of each that has ended."""

    def __init__(self, scenario: Scenario, seed: int, client: Completer, watch: Watcher) -> None:
        self._scenario = scenario
        self._seed = seed
        self._client = client
        self._watch = watch
        self._prompts = Prompts(seed, scenario.shapes)

    async def play(self) -> Run:
        """Warm-up, then what is measured."""
        await self._closed("warmup", self._scenario.warmup, self._warmup_streams)
        cpu = time.process_time()
        outcomes = await self._measured()
        summary = summarise(outcomes, time.process_time() - cpu)
        return Run(self._scenario, self._seed, tuple(outcomes), summary)

    @property
    def _warmup_streams(self) -> int:
        """As many at once as will be measured, so that the server has met that batch size."""
        load = self._scenario.load
        return load.streams if isinstance(load, Closed) else self._scenario.warmup

    async def _measured(self) -> list[Outcome]:
        match self._scenario.load:
            case Closed(streams):
                return await self._closed("measured", self._scenario.requests, streams)
            case Open(rate):
                return await self._open(self._scenario.requests, rate)

    async def _closed(self, phase: Phase, requests: int, streams: int) -> list[Outcome]:
        indices = iter(range(requests))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._stream(phase, indices)) for _ in range(min(streams, requests))]
        return [outcome for task in tasks for outcome in task.result()]

    async def _stream(self, phase: Phase, indices: Iterator[int]) -> list[Outcome]:
        # The streams share one iterator: whichever is free takes the next request.
        return [await self._request(phase, index) for index in indices]

    async def _open(self, requests: int, rate: float) -> list[Outcome]:
        begin = time.perf_counter()
        tasks = []
        async with asyncio.TaskGroup() as group:
            for index, arrival in enumerate(arrivals(self._seed, rate, requests)):
                due = begin + arrival
                await asyncio.sleep(due - time.perf_counter())
                # Latency counts from when the request was due: a client that lags must not flatter the server.
                tasks.append(group.create_task(self._request("measured", index, due)))
        return [task.result() for task in tasks]

    async def _request(self, phase: Phase, index: int, due: float | None = None) -> Outcome:
        shape = self._prompts.shape(phase, index)
        outcome = await self._client.complete(self._prompts.text(phase, index), shape.max_tokens, due, shape.beams)
        self._watch(phase, outcome)
        return outcome


def arrivals(seed: int, rate: float, count: int) -> list[float]:
    """Seconds from the start at which requests of a Poisson process arrive; the first arrives at 0."""
    rng = Random(f"{seed}/arrivals")
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(rate))
    return times[:count]
