"""`python -m loadtest.neighbours --url URL`: what busy processes beside a server on this machine cost it, as a table.

Each load is played alone and beside 1 and 2 endless loops, and beside one at nice 19. The fair share of T threads
beside K loops on C cores is C / (T + K) of a core for each, which makes a server so many times as fast as alone; the
last column says how much slower than that it was (1.3 and less is well). Loops end with this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.client import Client
from loadtest.run import Completer, Player
from loadtest.scenario import Closed, Scenario, Shape
from loadtest.target import Target, base_url, dialect

LOADS = (
    Scenario("1 stream", "", Closed(1), (Shape(prompt_words=32, max_tokens=64),), requests=3, warmup=1),
    Scenario("4 streams", "", Closed(4), (Shape(prompt_words=32, max_tokens=64),), requests=8, warmup=4),
    Scenario("prefill", "", Closed(1), (Shape(prompt_words=600, max_tokens=1),), requests=4, warmup=1),
)
# Ends by itself when whoever started it is gone, however that ended.
_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    pass"


@dataclass(frozen=True, slots=True)
class Neighbours:
    count: int
    nice: int = 0

    def __str__(self) -> str:
        return f"{self.count} at nice {self.nice}" if self.nice else str(self.count)


BESIDE = (Neighbours(0), Neighbours(1), Neighbours(2), Neighbours(1, nice=19))


@dataclass(frozen=True, slots=True)
class Line:
    load: str
    beside: Neighbours
    tokens_per_second: float
    fair: float  # tokens per second


@contextmanager
def busy(neighbours: Neighbours) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many endless loops, which end with the context."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(neighbours.count):
            loops.append(subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())]))
            os.setpriority(os.PRIO_PROCESS, loops[-1].pid, neighbours.nice)
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def fair_share(threads: int, neighbours: Neighbours, cores: int) -> float:
    """Of the speed alone; loops of low priority should not count."""
    count = 0 if neighbours.nice else neighbours.count
    return min(1.0, cores / (threads + count))


async def measure(
    client: Completer,
    threads: int,
    cores: int,
    loads: Sequence[Scenario] = LOADS,
    beside: Sequence[Neighbours] = BESIDE,
) -> list[Line]:
    """A line for each load beside each; the first of `beside` is what the others are compared with."""
    lines: list[Line] = []
    for load in loads:
        alone = 0.0
        for seed, neighbours in enumerate(beside):  # other prompts each time: the prefix cache must not help
            with busy(neighbours):
                run = await Player(load, seed, client, lambda *_: None).play()
            speed = run.summary.total_tokens_per_second
            alone = alone or speed
            lines.append(Line(load.name, neighbours, speed, alone * fair_share(threads, neighbours, cores)))
    return lines


def table(lines: Sequence[Line]) -> str:
    heads = ["load", "busy neighbours", "prompt + output, tok/s", "fair, tok/s", "slower than fair"]
    cells = [heads, ["---"] * len(heads)]
    for line in lines:
        slower = f"{line.fair / line.tokens_per_second:.2f}" if line.tokens_per_second else "nothing came"
        cells.append([line.load, str(line.beside), f"{line.tokens_per_second:.1f}", f"{line.fair:.1f}", slower])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.neighbours")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a server on this machine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="as the server was told")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each request")
    given = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    client = Client(Target(base_url(given.url), dialect("polydecode")), given.timeout)
    try:
        lines = asyncio.run(measure(client, given.threads, cores))
    except KeyboardInterrupt:
        return 130
    show(table(lines))
    return 0 if all(line.tokens_per_second for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
