"""The commands `run`, `compare`, `table`, `curve` and `soak`: builds clients and contenders from options and plays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import httptools
import msgspec

from loadtest.client import Client
from loadtest.compare import Comparison, compare
from loadtest.contender import Contender, Paused, Ready, Restarted, Running
from loadtest.curve import Curve, Growth, Point
from loadtest.options import Between, CompareOptions, CurveOptions, RunOptions, SoakOptions, TableOptions
from loadtest.process import ServerProcess
from loadtest.report.progress import Display
from loadtest.run import Player, Run
from loadtest.scenario import Scenario
from loadtest.side import Side
from loadtest.soak.soaker import Soak, Soaker
from loadtest.soak.watch import Watch
from loadtest.statistics import Summary
from loadtest.table import Column, tabulate
from loadtest.target import Target

_SEED_STEP = 1_000_003


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def with_model(target: Target, client: Client) -> Target:
    """The target with the server's first model; unchanged if it has one already or the server lists none."""
    if target.model is not None:
        return target
    try:
        status, body = await client.get("/v1/models")
        models = msgspec.json.decode(body, type=_Models).data if status == 200 else []
    except (OSError, httptools.HttpParserError, msgspec.DecodeError):
        return target
    return replace(target, model=models[0].id) if models else target


async def run_once(options: RunOptions, display: Display) -> tuple[Run, Target]:
    """The run, and the target as it was asked."""
    common = options.common
    (scenario,) = common.scenarios
    target = await with_model(options.target, Client(options.target, common.timeout))
    watch = display.line(scenario.name, scenario)
    run = await Player(scenario, common.seed, Client(target, common.timeout), watch).play()
    return run, target


async def grow_all(options: CurveOptions, display: Display) -> tuple[list[Growth], Target]:
    """Each curve point by point, smallest first, and the target as it was asked."""
    client = Client(options.target, options.timeout)
    target = await with_model(options.target, client)
    growths = []
    for curve in options.curves:
        points = [await _point(curve, x, options, target, display) for x in curve.values if x <= options.most]
        growths.append(Growth(curve, tuple(points)))
    return growths, target


async def _point(curve: Curve, x: int, options: CurveOptions, target: Target, display: Display) -> Point:
    scenario = curve.grown(x)
    watch = display.line(scenario.name, scenario)
    seed = options.seed + x  # no point knows the prompts of another
    run = await Player(scenario, seed, Client(target, options.timeout), watch).play()
    display.note(f"{scenario.name}: {run.summary.output_tokens_per_second:.1f} tok/s")
    return Point(x, run.summary)


async def compare_all(options: CompareOptions, display: Display) -> list[Comparison]:
    """One comparison a scenario, the servers kept over all of them."""
    playing = _Playing({"A": options.a, "B": options.b}, options.common.timeout, display)
    # Each pair has prompts of its own: a server that keeps prefixes must not know them from the pair before.
    seeds = tuple(options.common.seed + _SEED_STEP * number for number in range(options.pairs))
    async with (
        _opened(_contender(options.a, options.between, options.ready_timeout)) as a,
        _opened(_contender(options.b, options.between, options.ready_timeout)) as b,
    ):
        return [await compare(scenario, a, b, playing.play, seeds) for scenario in options.common.scenarios]


async def tabulate_all(options: TableOptions, display: Display, done: Callable[[Column], None]) -> None:
    """One column a scenario, told as soon as it is done; the servers kept over all of them."""
    playing = _Playing(options.sides, options.common.timeout, display)
    async with AsyncExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name, side in options.sides.items():
            display.note(f"{name}: starting")
            opened = _opened(_contender(side, options.between, options.ready_timeout))
            contenders[name] = await stack.enter_async_context(opened)
        for number, scenario in enumerate(options.common.scenarios):
            playable = {name: one for name, one in contenders.items() if options.sides[name].can_play(scenario)}
            # Neither a round nor a scenario may know the prompts of the one before.
            rounds = range(number * options.rounds, (number + 1) * options.rounds)
            seeds = tuple(options.common.seed + _SEED_STEP * round_ for round_ in rounds)
            done(await tabulate(scenario, playable, playing.play, seeds))


@dataclass(frozen=True, slots=True)
class _Playing:
    sides: Mapping[str, Side]
    timeout: float
    display: Display

    async def play(self, label: str, scenario: Scenario, seed: int) -> Summary:
        target = self.sides[label].target
        target = await with_model(target, Client(target, self.timeout))
        watch = self.display.line(f"{label} {scenario.name}", scenario)
        summary = (await Player(scenario, seed, Client(target, self.timeout), watch).play()).summary
        self.display.note(f"{label} {scenario.name}: {summary.output_tokens_per_second:.1f} tok/s")
        return summary


@asynccontextmanager
async def _opened(contender: Contender) -> AsyncIterator[Contender]:
    try:
        await contender.open()
        yield contender
    finally:
        await contender.close()


def _contender(side: Side, between: Between, ready_timeout: float) -> Contender:
    # A short timeout a poll: a server that hangs while it loads must not eat the whole wait.
    ready = Ready(Client(side.target, timeout=5.0), side.ready_path, ready_timeout)
    if side.command is None:
        return Running(ready)
    process = ServerProcess(side.command)
    return Paused(process, ready) if between == "pause" else Restarted(process, ready)


async def soak_once(options: SoakOptions) -> tuple[Soak, Target]:
    """The soak, and the target as it was asked. A server that we start is ended afterwards."""
    side, probing = options.side, Client(options.side.target, timeout=5.0)
    process = None if side.command is None else ServerProcess(side.command)
    try:
        if process is not None:
            await process.start()
        await Ready(probing, side.ready_path, options.ready_timeout).wait(process)
        target = await with_model(side.target, probing)
        pid = options.pid if process is None else process.pid
        check = _no_check if process is None else process.check
        soak = await Soaker(options.plan, target, Watch(probing, pid), pid, check).run()
        check()
        return soak, target
    finally:
        if process is not None:
            await process.stop()


def _no_check() -> None:
    """Of a server that someone else runs: its silence shows in the figures."""
