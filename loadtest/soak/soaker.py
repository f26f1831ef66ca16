"""A soak: mixed traffic for as long as is asked, bursts that overflow the queue, kills of the worker, samples.

It measures no throughput. It looks for what grows, for requests that nobody answered, for counts that do not add up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from loadtest.soak.exchange import Ending, ask
from loadtest.soak.kinds import BURST, KINDS, Kind
from loadtest.soak.watch import COUNTED, Sample, Watch, kill_worker
from loadtest.target import Target

REFUSED_SECONDS = 0.5  # a client that is told to come back later does not come back at once
SETTLE_SECONDS = 60.0
BUSY = ("polydecode_running_requests", "polydecode_waiting_requests", "polydecode_kv_pages_used")


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds, but for users and burst. kill_every, burst_every: 0 for never; gaps vary by half."""

    seconds: float
    users: int
    kill_every: float
    burst_every: float
    burst: int
    sample_every: float
    timeout: float
    seed: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and when it was sent."""

    seconds: float
    kind: str
    ending: Ending


@dataclass(slots=True)
class Soak:
    """What happened. counted: by the server, of the requests that were sent; None if it does not say."""

    plan: Plan
    exchanges: list[Exchange] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    counted: float | None = None

    @property
    def unanswered(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.ending.verdict == "unanswered"]


class Soaker:
    """`pid`: whose worker is to be killed; None for no kills. `check` raises if the server has ended."""

    def __init__(
        self, plan: Plan, target: Target, watch: Watch, pid: int | None, check: Callable[[], None] = lambda: None
    ) -> None:
        self._plan = plan
        self._target = target
        self._watch = watch
        self._pid = pid
        self._check = check
        self._rng = Random(plan.seed)
        self._soak = Soak(plan)

    async def run(self) -> Soak:
        """The whole soak; afterwards the server is idle, or was given a minute to be."""
        before = await self._counted()
        sampling = asyncio.create_task(self._sample_on())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._plan.users):
                    group.create_task(self._use())
                group.create_task(self._burst_on())
                group.create_task(self._kill_on())
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})
        await self._settle()
        after = await self._counted()
        self._soak.counted = None if before is None or after is None else after - before
        return self._soak

    @property
    def _is_over(self) -> bool:
        return self._watch.seconds >= self._plan.seconds

    async def _use(self) -> None:
        """One user: one request after the other."""
        weights = [kind.weight for kind in KINDS]
        while not self._is_over:
            ending = await self._send(self._rng.choices(KINDS, weights)[0])
            if ending.status in (429, 503) or ending.status is None:
                self._check()
                await asyncio.sleep(REFUSED_SECONDS)

    async def _send(self, kind: Kind) -> Ending:
        seconds, rng = self._watch.seconds, Random(self._rng.randrange(1 << 62))
        ending = await ask(self._target, kind.body(self._target, rng), kind.manner, rng, self._plan.timeout)
        self._soak.exchanges.append(Exchange(seconds, kind.name, ending))
        return ending

    async def _burst_on(self) -> None:
        while await self._pause(self._plan.burst_every):
            async with asyncio.TaskGroup() as group:
                for _ in range(self._plan.burst):
                    group.create_task(self._send(BURST))

    async def _kill_on(self) -> None:
        if self._pid is None:
            return
        while await self._pause(self._plan.kill_every):
            if kill_worker(self._pid) is not None:
                self._soak.kills.append(self._watch.seconds)

    async def _pause(self, mean: float) -> bool:
        """Waits around `mean` seconds; False if the soak is over then, or if it is to be never."""
        if not mean:
            return False
        end = min(self._watch.seconds + mean * self._rng.uniform(0.5, 1.5), self._plan.seconds)
        await asyncio.sleep(end - self._watch.seconds)
        return not self._is_over

    async def _sample_on(self) -> None:
        while True:
            self._soak.samples.append(await self._watch.sample())
            await asyncio.sleep(self._plan.sample_every)

    async def _settle(self) -> None:
        """Readers that went must be gone with their rows and pages."""
        deadline = self._watch.seconds + SETTLE_SECONDS
        while self._watch.seconds < deadline:
            sample = await self._watch.sample()
            metrics = sample.metrics
            if sample.ready_status == 200 and metrics is not None and not any(metrics.get(name) for name in BUSY):
                self._soak.samples.append(sample)
                return
            await asyncio.sleep(0.2)
        self._soak.samples.append(await self._watch.sample())

    async def _counted(self) -> float | None:
        metrics, _ = await self._watch.metrics()
        return None if metrics is None else metrics.get(COUNTED)
