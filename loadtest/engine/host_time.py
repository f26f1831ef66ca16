"""`python -m loadtest.engine.host_time`: what the engine itself costs a tick, as a Markdown table.

The model costs nothing: it has few tokens, and says the same whatever it is fed. So what is left of a decode tick is
Python's time, which a GPU waits for wherever it is done sooner: that of the processor, whatever else runs beside it.
Calls of Python functions are counted apart; they are the same on every machine.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from decoding.attention.interface import Batch
from decoding.contract.params import MAIN, Beam, LogitsParams, Request, Sampling, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.placed import Placed
from decoding.engine.vocabulary import Vocabulary
from decoding.strategies import build
from decoding.worker.worker import COLLECTOR_THRESHOLDS

VOCAB = 64
PAGE_SIZE = 16
WARM_UP_TICKS = 8
BEAMS = 4


@dataclass(frozen=True, slots=True)
class Nothing:
    """Hidden states that nobody reads."""

    last: torch.Tensor  # [T, 1]
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    probed: dict[int, torch.Tensor] = field(default_factory=dict)


class NoPages:
    page_size = PAGE_SIZE

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None: ...


class FreeModel:
    """The same logits for every token, of which none stands out."""

    encoder = None

    def __init__(self) -> None:
        self.attention = NoPages()
        self._logits = torch.rand(1, VOCAB, generator=torch.Generator().manual_seed(1))

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> Nothing:
        return Nothing(torch.zeros(batch.num_tokens, 1))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits.expand(len(hidden), VOCAB)

    project = head


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind. rows: that each has."""

    name: str
    strategy: Any
    logits: LogitsParams
    rows: int = 1


KINDS = (
    Kind("greedy", Sampling(), LogitsParams(temperature=0)),
    Kind("sampling", Sampling(), LogitsParams(temperature=1.0)),
    Kind("beams", Beam(BEAMS, BEAMS), LogitsParams(temperature=0), BEAMS),
)


def decode_ticks(kind: Kind, rows: int, prompt: int, ticks: int) -> Iterator[Callable[[], object]]:
    """Rounds in which every row decodes once, to be called one after the other: a tick, or two of groups in turn."""
    longest = prompt + WARM_UP_TICKS + ticks + 4
    num_pages = 2 + rows * (2 + longest // PAGE_SIZE)
    placed = {MAIN: Placed(FreeModel(), PageCache(num_pages, PAGE_SIZE))}
    engine = Engine(placed, Vocabulary(()), Limits(rows, rows * prompt), launches_ahead=True)
    stopping = StoppingParams(longest - prompt, ignore_eos=True)
    for at in range(rows // kind.rows):
        ids = tuple((at + i) % VOCAB for i in range(prompt))
        engine.add(at, Request(ids, kind.strategy, kind.logits, stopping, seed=at), build)
    for _ in range(WARM_UP_TICKS):
        engine.tick()

    def all_rows() -> None:
        read = 0
        while read < rows:
            engine.tick()
            read += engine.tick_rows
        assert read == rows

    for _ in range(ticks):
        yield all_rows


def microseconds(kind: Kind, rows: int, prompt: int, ticks: int) -> float:
    """Median of a tick's time."""
    seconds = []
    for tick in decode_ticks(kind, rows, prompt, ticks):
        before = time.thread_time()
        tick()
        seconds.append(time.thread_time() - before)
    return 1e6 * statistics.median(seconds)


def calls(kind: Kind, rows: int, prompt: int) -> float:
    """Calls of Python functions in one page's worth of ticks, of a tick."""
    counted = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    for tick in decode_ticks(kind, rows, prompt, PAGE_SIZE):
        sys.setprofile(count)
        tick()
        sys.setprofile(None)
    return counted / PAGE_SIZE


def table(lines: Sequence[tuple[str, int, float, float]]) -> str:
    heads = ["rows that", "rows", "a tick, ms", "µs a row", "calls a row"]
    cells = [heads, ["---"] * len(heads)]
    for name, rows, of_tick, num_calls in lines:
        cells.append([name, str(rows), f"{of_tick / 1e3:.2f}", f"{of_tick / rows:.1f}", f"{num_calls / rows:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.host_time")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--ticks", type=int, default=64, help="that are timed")
    given = parser.parse_args(argv)
    with torch.inference_mode(), as_in_the_worker():
        lines = [
            (kind.name, rows, microseconds(kind, rows, given.prompt, given.ticks), calls(kind, rows, given.prompt))
            for kind in KINDS
            for rows in given.rows
        ]
    show(table(lines))
    return 0


@contextmanager
def as_in_the_worker() -> Iterator[None]:
    """One thread of torch's, and a collector that seldom looks."""
    threads, thresholds = torch.get_num_threads(), gc.get_threshold()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        gc.unfreeze()
        gc.set_threshold(*thresholds)


if __name__ == "__main__":
    raise SystemExit(main())
