"""Our engine in this process, with pages for the largest scenario: runs requests and times every tick."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from decoding.attention.interface import Batch
from decoding.contract.params import MAIN, LogitsParams, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.output import Output
from decoding.engine.placed import Placed
from decoding.engine.vocabulary import Vocabulary
from decoding.model.model import Model
from decoding.strategies import build as build_strategy
from loadtest.engine.gpu_box import seconds

GREEDY = LogitsParams(temperature=0)


@dataclass(frozen=True, slots=True)
class Options:
    device: torch.device
    dtype: torch.dtype
    shape: str
    rows: tuple[int, ...]
    prompt: int
    new: int
    prefill: int
    beams: tuple[int, int]
    is_batch_invariant: bool
    peers: tuple[str, ...]
    json: Path | None


@dataclass(frozen=True, slots=True)
class Tick:
    seconds: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """tokens: each request's output, of its first choice. logprobs: of the output, and of the prompt where asked."""

    seconds: float
    ticks: tuple[Tick, ...]
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    prompt_logprobs: tuple[tuple[float, ...], ...]

    def decode_seconds(self, num_rows: int) -> float:
        """Median time of the ticks in which so many rows fed one token each."""
        return statistics.median(t.seconds for t in self.ticks if t.rows == t.tokens == num_rows)


class Bench:
    """One model in one engine, with pages for the largest scenario."""

    def __init__(self, model: Model, options: Options) -> None:
        self._options = options
        self._model = model
        longest = max(options.prompt + options.new, options.prefill + 1)
        num_rows = max(*options.rows, options.beams[0] * options.beams[1])
        size = model.attention.page_size
        needed = num_rows * -(-(options.prompt + options.new) // size) + -(-longest // size)
        num_pages = 2 + needed + num_rows  # beams copy a page before they write to it
        model.attention.allocate(num_pages)
        self.engine = Engine(
            {MAIN: Placed(model, PageCache(num_pages, size, has_prefix_index=False))},
            Vocabulary(()),
            Limits(max_rows=num_rows, tick_tokens=8192 if options.device.type == "cuda" else 512),
            launches_ahead=options.device.type == "cuda",
        )
        self._vocab = model.info.vocab_size

    def prompts(self, count: int, length: int, seed: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self._vocab, (count, length), generator=generator)
        return [tuple(row) for row in ids.tolist()]

    def requests(self, count: int, seed: int) -> list[Request]:
        """Greedy, of the length asked for, whatever the model would say."""
        stopping = StoppingParams(self._options.new, ignore_eos=True)
        return [Request(p, logits=GREEDY, stopping=stopping) for p in self.prompts(count, self._options.prompt, seed)]

    def forward_seconds(self, num_rows: int, context: int) -> float:
        """Of the forward of a decode step by itself, over rows of so many positions. While no request is running."""
        size = self._model.attention.page_size
        pages = -(-context // size)
        tables = 1 + np.arange(num_rows * pages).reshape(num_rows, pages)
        ones = np.ones(num_rows, dtype=np.int64)
        batch = Batch.of_rows(0 * ones, (context - 1) * ones, ones, tables, size)
        return seconds(lambda: self._model.forward(batch), self._options.device)

    def run(self, requests: Sequence[Request]) -> Run:
        try:
            return self._run(requests)
        except Exception:
            for at in range(len(requests)):  # the next run must not meet them
                self.engine.cancel(at)
            raise

    def _run(self, requests: Sequence[Request]) -> Run:
        ticks: list[Tick] = []
        outputs: list[Output] = []
        started = time.perf_counter()
        for at, request in enumerate(requests):
            self.engine.add(at, request, build_strategy)
        while self.engine.has_work:
            before = time.perf_counter()
            outputs += self.engine.tick()
            ticks.append(Tick(time.perf_counter() - before, self.engine.tick_rows, self.engine.tick_tokens))
        seconds = time.perf_counter() - started
        return _gathered(len(requests), outputs, seconds, ticks)


@contextmanager
def threads_as_in_the_worker(model: Model) -> Iterator[None]:
    """Kernels bring threads of their own, and the worker leaves one to torch then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if model.is_compiled else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _gathered(count: int, outputs: Sequence[Output], seconds: float, ticks: Sequence[Tick]) -> Run:
    tokens: list[list[int]] = [[] for _ in range(count)]
    logprobs: list[list[float]] = [[] for _ in range(count)]
    of_prompts: list[tuple[float, ...]] = [()] * count
    for output in outputs:
        if output.failure is not None:
            raise RuntimeError(output.failure.message) from output.failure.cause
        if output.prompt is not None:
            of_prompts[output.request_id] = tuple(p for p in output.prompt.logprobs if p is not None)
        for emit in output.emits:
            if emit.choice == 0:
                tokens[output.request_id] += emit.token_ids
                logprobs[output.request_id] += emit.logprobs or ()
    return Run(seconds, tuple(ticks), tuple(map(tuple, tokens)), tuple(map(tuple, logprobs)), tuple(of_prompts))
