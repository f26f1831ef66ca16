"""Our engine in this process, with pages for the largest scenario: runs requests and times every tick."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
from loadtest.engine.machine import seconds

GREEDY = LogitsParams(temperature=0)


@dataclass(frozen=True, slots=True)
class Load:
    """What a bench has pages for. longest: positions of a single row that runs by itself."""

    num_rows: int
    prompt: int
    new: int
    longest: int = 0

    def num_pages(self, page_size: int) -> int:
        """Page 0 and one for copies included; beams copy a page before they write to it."""
        each = -(-(self.prompt + self.new) // page_size)
        return 2 + self.num_rows * (each + 1) + -(-self.longest // page_size)


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


@dataclass(frozen=True, slots=True)
class Steady:
    """ticks: those in which as many requests ran as could. num_tokens: put out in them.

    num_tokens_in_all: before and after them, too.
    """

    ticks: tuple[Tick, ...]
    num_tokens: int
    num_tokens_in_all: int

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / sum(tick.seconds for tick in self.ticks)


class Bench:
    """One model in one engine, with pages for the load."""

    def __init__(self, model: Model, load: Load) -> None:
        self.load = load
        self.model = model
        size, is_gpu = model.attention.page_size, model.info.device.type == "cuda"
        model.attention.allocate(load.num_pages(size))
        self.engine = Engine(
            {MAIN: Placed(model, PageCache(load.num_pages(size), size, has_prefix_index=False))},
            Vocabulary(()),
            Limits(max_rows=load.num_rows, tick_tokens=8192 if is_gpu else 512),
            launches_ahead=is_gpu,
        )
        self._vocab = model.info.vocab_size

    def prompts(self, count: int, length: int, seed: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self._vocab, (count, length), generator=generator)
        return [tuple(row) for row in ids.tolist()]

    def requests(self, count: int, seed: int) -> list[Request]:
        """Greedy, of the length asked for, whatever the model would say."""
        stopping = StoppingParams(self.load.new, ignore_eos=True)
        return [Request(p, logits=GREEDY, stopping=stopping) for p in self.prompts(count, self.load.prompt, seed)]

    def forward_seconds(self, num_rows: int, context: int) -> float:
        """Of the forward of a decode step by itself, over rows of so many positions. While no request is running."""
        size = self.model.attention.page_size
        pages = -(-context // size)
        tables = 1 + np.arange(num_rows * pages).reshape(num_rows, pages)
        ones = np.ones(num_rows, dtype=np.int64)
        ids = torch.randint(0, self._vocab, (num_rows,), generator=torch.Generator().manual_seed(num_rows)).numpy()
        batch = Batch.of_rows(ids, (context - 1) * ones, ones, tables, size)
        return seconds(lambda: self.model.forward(batch), self.model.info.device)

    def run(self, requests: Sequence[Request]) -> Run:
        try:
            return self._run(requests)
        except Exception:
            for at in range(len(requests)):  # the next run must not meet them
                self.engine.cancel(at)
            raise

    def steady(self, requests: Sequence[Request], num_live: int) -> Steady:
        """So many requests at once, the next as soon as one ends."""
        try:
            return self._steady(requests, num_live)
        except Exception:
            for at in range(len(requests)):
                self.engine.cancel(at)
            raise

    def _steady(self, requests: Sequence[Request], num_live: int) -> Steady:
        ticks: list[Tick] = []
        added, ended, tokens, steady_tokens = 0, 0, 0, 0
        while ended < len(requests):
            while added < len(requests) and added - ended < num_live:
                self.engine.add(added, requests[added], build_strategy)
                added += 1
            is_steady = ended > 0 and added < len(requests)
            outputs, tick = self._tick()
            found = sum(len(emit.token_ids) for output in outputs for emit in output.emits)
            ended += sum(output.usage is not None for output in outputs)
            tokens += found
            if is_steady:
                ticks.append(tick)
                steady_tokens += found
            _raise_failure(outputs)
        return Steady(tuple(ticks), steady_tokens, tokens)

    def _tick(self) -> tuple[list[Output], Tick]:
        before = time.perf_counter()
        outputs = self.engine.tick()
        return outputs, Tick(time.perf_counter() - before, self.engine.tick_rows, self.engine.tick_tokens)

    def _run(self, requests: Sequence[Request]) -> Run:
        ticks: list[Tick] = []
        outputs: list[Output] = []
        started = time.perf_counter()
        for at, request in enumerate(requests):
            self.engine.add(at, request, build_strategy)
        while self.engine.has_work:
            said, tick = self._tick()
            outputs += said
            ticks.append(tick)
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


def _raise_failure(outputs: Sequence[Output]) -> None:
    for output in outputs:
        if output.failure is not None:
            raise RuntimeError(output.failure.message) from output.failure.cause


def _gathered(count: int, outputs: Sequence[Output], seconds: float, ticks: Sequence[Tick]) -> Run:
    tokens: list[list[int]] = [[] for _ in range(count)]
    logprobs: list[list[float]] = [[] for _ in range(count)]
    of_prompts: list[tuple[float, ...]] = [()] * count
    _raise_failure(outputs)
    for output in outputs:
        if output.prompt is not None:
            of_prompts[output.request_id] = tuple(p for p in output.prompt.logprobs if p is not None)
        for emit in output.emits:
            if emit.choice == 0:
                tokens[output.request_id] += emit.token_ids
                logprobs[output.request_id] += emit.logprobs or ()
    return Run(seconds, tuple(ticks), tuple(map(tuple, tokens)), tuple(map(tuple, logprobs)), tuple(of_prompts))
