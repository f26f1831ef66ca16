"""The engine, run by whoever waits for an answer: a tick serves every call under way, and each gets its own outputs.

Calls may come from several threads, and a stream that is read now and then goes on with each tick of any other call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Generic, Self, TypeVar

import torch

from decoding.contract.frames import Output
from decoding.contract.params import Request
from decoding.engine.engine import Engine
from decoding.strategies import Build
from decoding.worker.worker import output_frame
from polydecode.interrupt import undisturbed

Key = TypeVar("Key")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Torch computes with so many threads meanwhile; before and after, the caller's own work is left alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Call(Generic[Key]):
    """The requests of one caller. Leaving it, for whatever reason, gives back the rows and pages of those open."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._open: dict[int, Key] = {}
        self._arrived: deque[tuple[Key, Output]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.cancel(list(self._open))
        self._open.clear()

    def add(self, key: Key, request: Request) -> None:
        request_id = self._runner.new_id()
        self._open[request_id] = key
        self._runner.add(request_id, request, self)

    def drop(self, keys: Iterable[Key]) -> None:
        """Nothing more of them."""
        dropped = set(keys)
        self._runner.cancel([request_id for request_id, key in self._open.items() if key in dropped])
        self._open = {request_id: key for request_id, key in self._open.items() if key not in dropped}

    def take(self) -> list[tuple[Key, Output]]:
        """What there is, after at least one tick where there is nothing yet; empty once nothing is open."""
        while self._open and not self._arrived:
            self._runner.tick()
        taken = list(self._arrived)
        self._arrived.clear()
        return taken

    def deliver(self, output: Output) -> None:
        key = self._open.get(output.request_id)
        if key is None:  # dropped meanwhile
            return
        self._arrived.append((key, output))
        if output.finished is not None:
            del self._open[output.request_id]


class Runner:
    """num_threads: torch's, during a tick. build: makes strategies."""

    def __init__(self, engine: Engine, num_threads: int, build: Build) -> None:
        self._engine = engine
        self._build = build
        self._num_threads = num_threads
        self._lock = threading.RLock()
        self._is_busy = False
        self._ids = count(1)
        self._calls: dict[int, Call[Any]] = {}
        self._cancelled: deque[int] = deque()

    @property
    def used_pages(self) -> int:
        return self._engine.used_pages

    @property
    def running_rows(self) -> int:
        return sum(len(live.rows) for live in self._engine.scheduler.running)

    def call(self) -> Call[Any]:
        """For one caller's requests, under keys of its own. To be entered."""
        return Call(self)

    def new_id(self) -> int:
        return next(self._ids)

    def add(self, request_id: int, request: Request, call: Call[Key]) -> None:
        with self._at_work():
            self._calls[request_id] = call
            self._engine.add(request_id, request, self._build)

    def tick(self) -> None:
        """One step of everybody. Ctrl-C waits for its end."""
        with self._at_work():
            if not self._engine.has_work:
                return
            for output in self._engine.tick():
                call = self._calls.get(output.request_id)
                if output.usage is not None:
                    self._calls.pop(output.request_id, None)
                if call is not None:
                    call.deliver(output_frame(output))
            self._rest()

    def cancel(self, request_ids: Iterable[int]) -> None:
        """At once, unless the engine is at work: a stream may be thrown away by the garbage collector in mid-tick."""
        self._cancelled.extend(request_ids)
        if self._lock.acquire(blocking=False):
            try:
                if not self._is_busy:
                    with self._at_work():
                        self._rest()
            finally:
                self._lock.release()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with undisturbed(), self._lock:
            self._is_busy = True
            try:
                while self._cancelled:
                    request_id = self._cancelled.popleft()
                    self._calls.pop(request_id, None)
                    self._engine.cancel(request_id)
                with torch.inference_mode(), torch_threads(self._num_threads):
                    yield
            finally:
                self._is_busy = False

    def _rest(self) -> None:
        """With nothing left to do, prove that nothing leaked."""
        if not self._engine.has_work:
            self._engine.rest()
