"""What busy processes beside a server on this machine cost it: `python -m loadtest neighbours --url URL`.

Each load is played alone and beside 1 and 2 endless loops, and beside one at nice 19. The fair share of T threads
beside K loops on C cores is C / (T + K) of a core for each, which makes a server so many times as fast as alone; the
last column says how much slower than that it was (1.3 and less is well). Loops end with this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.run import Completer, Player
from loadtest.scenario import Closed, Scenario, Shape

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


HEAD = """| load | busy neighbours | prompt + output, tok/s | fair, tok/s | slower than fair |
|---|---|---|---|---|"""
BESIDE = (Neighbours(0), Neighbours(1), Neighbours(2), Neighbours(1, nice=19))


@dataclass(frozen=True, slots=True)
class Line:
    load: str
    beside: Neighbours
    tokens_per_second: float
    fair: float  # tokens per second

    def __str__(self) -> str:
        slower = f"{self.fair / self.tokens_per_second:.2f}" if self.tokens_per_second else "nothing came"
        cells = (self.load, str(self.beside), f"{self.tokens_per_second:.1f}", f"{self.fair:.1f}", slower)
        return f"| {' | '.join(cells)} |"


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


def fair_share(threads: int, neighbours: Neighbours, cores: int, *, is_nice_heeded: bool = True) -> float:
    """Of the speed alone; loops of low priority should not count where that is heeded."""
    count = 0 if neighbours.nice and is_nice_heeded else neighbours.count
    return min(1.0, cores / (threads + count))


def is_nice_heeded(autogroup: Path = Path("/proc/sys/kernel/sched_autogroup_enabled")) -> bool:
    """Linux with autogroups shares the cores among sessions, and priorities count within one only."""
    try:
        return autogroup.read_text().strip() == "0"
    except OSError:
        return True


async def measure(
    client: Completer,
    threads: int,
    cores: int,
    *,
    loads: Sequence[Scenario] = LOADS,
    beside: Sequence[Neighbours] = BESIDE,
    show: Callable[[Line], None] = lambda _: None,
) -> list[Line]:
    """A line for each load beside each, shown once known. The first of `beside` is what others are compared with."""
    lines: list[Line] = []
    is_heeded = is_nice_heeded()
    for load in loads:
        alone = 0.0
        for seed, neighbours in enumerate(beside):  # other prompts each time: the prefix cache must not help
            with busy(neighbours):
                run = await Player(load, seed, client, lambda *_: None).play()
            speed = run.summary.total_tokens_per_second
            alone = alone or speed
            share = fair_share(threads, neighbours, cores, is_nice_heeded=is_heeded)
            lines.append(Line(load.name, neighbours, speed, alone * share))
            show(lines[-1])
    return lines
