"""`python -m loadtest.engine.tick_profile [DIR]`: where a decode tick's milliseconds go, as a Markdown table.

Every row decodes greedily. Runs our engine in this process; no server. Quote figures of one sitting.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from decoding.contract.quantize import Quantize
from decoding.engine.engine import Engine
from decoding.engine.output import Output
from decoding.gguf.embedded import ensure_directory
from decoding.model.loading import load
from decoding.model.model import Model
from loadtest.engine.gpu_engine import Bench, Options, threads_as_in_the_worker

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
    bench = Bench(model, _options(model, rows, prompt, new))
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


def _options(model: Model, rows: int, prompt: int, new: int) -> Options:
    return Options(
        device=model.info.device,
        dtype=model.info.dtype,
        shape="",
        rows=(rows,),
        prompt=prompt,
        new=new,
        prefill=prompt,
        beams=(1, 1),
        is_batch_invariant=False,
        peers=(),
        json=None,
    )


def table(lines: Sequence[tuple[str, int, float, dict[str, float]]]) -> str:
    heads = ["weights", "rows", "whole tick", *PHASES, "rest"]
    cells = [heads, ["---"] * len(heads)]
    for form, rows, whole, parts in lines:
        numbers = [whole, *parts.values(), whole - sum(parts.values())]
        cells.append([f"`{form}`", str(rows), *(f"{number:.2f}" for number in numbers)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.tick_profile")
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a local model; none: the embedded one")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--forms", nargs="+", choices=get_args(Quantize), default=["none"], help="of the weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    given = parser.parse_args(argv)
    directory = given.directory or str(ensure_directory(None, lambda *_: None))
    lines: list[tuple[str, int, float, dict[str, float]]] = []
    for form in given.forms:
        model = load(directory, device=given.device, dtype="auto", quantize=form)
        with threads_as_in_the_worker(model), torch.inference_mode():
            lines += [(form, rows, *profile(model, rows, given.prompt, given.new)) for rows in given.rows]
    show(table(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
