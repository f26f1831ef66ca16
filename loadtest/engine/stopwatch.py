"""Where the host's milliseconds of a decode tick go: packing, layers, output matrix, reads, strategies."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from decoding.engine.engine import Engine
from decoding.engine.output import Output
from decoding.model.model import Model
from loadtest.engine.bench import Bench, Load

PHASES = ("pack", "layers", "head", "reads", "advance")


@dataclass(slots=True)
class Stopwatch:
    """Adds up the seconds spent in what it watches, apart for each tick."""

    now: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    ticks: list[dict[str, float]] = field(default_factory=list)

    def watch(self, owner: Any, name: str, phase: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            before = time.perf_counter()
            found = function(*args, **options)
            self.now[phase] += time.perf_counter() - before
            return found

        setattr(owner, name, timed)

    def end_ticks_of(self, engine: Engine) -> None:
        tick = engine.tick

        def timed() -> list[Output]:
            outputs = tick()
            of, self.now = self.now, dict.fromkeys(PHASES, 0.0)
            self.ticks.append(of | {"reads": of["reads"] - of["layers"] - of["head"]})  # they are inside
            return outputs

        engine.tick = timed  # type: ignore[method-assign]


def profile(model: Model, rows: int, prompt: int, new: int) -> tuple[float, dict[str, float]]:
    """Medians of the ticks in which all rows decode: milliseconds of the whole and of each phase."""
    bench = Bench(model, Load(rows, prompt, new))
    bench.run(bench.requests(rows, seed=1))
    stopwatch = Stopwatch()
    stopwatch.watch(bench.engine, "_pack", "pack")  # the engine has no clock of its own, and needs none but here
    stopwatch.watch(bench.engine._decoding, "run", "reads")
    stopwatch.watch(model, "forward", "layers")
    stopwatch.watch(model, "head", "head")
    stopwatch.watch(bench.engine, "_advance", "advance")
    stopwatch.end_ticks_of(bench.engine)
    run = bench.run(bench.requests(rows, seed=2))
    of_all = [i for i, tick in enumerate(run.ticks) if tick.rows == tick.tokens == rows]
    medians = {phase: 1e3 * statistics.median(stopwatch.ticks[i][phase] for i in of_all) for phase in PHASES}
    return 1e3 * run.decode_seconds(rows), medians
