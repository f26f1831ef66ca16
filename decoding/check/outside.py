"""What code should not look at while it decodes, in our hands: the clocks and the random numbers that have no key."""

from __future__ import annotations

import contextlib
import datetime
import random
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
TICK = 0.001


class Clock:
    """Each look at it is a moment later."""

    def __init__(self, start: float) -> None:
        self._now = start

    def seconds(self) -> float:
        self._now += TICK
        return self._now

    def nanoseconds(self) -> int:
        return int(self.seconds() * 1e9)


@contextlib.contextmanager
def outside(*, clock: float = 1e9, seed: int = 0) -> Iterator[None]:
    """The clocks start there, and the random numbers that no request's seed has anything to do with at that seed."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with contextlib.ExitStack() as patches:
        for patch in _patches(Clock(clock)):
            patches.enter_context(patch)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def _patches(clock: Clock) -> Iterator[Any]:
    """Of the module `time`, and of every module that took a clock from it by name."""
    fakes: dict[int, Any] = {id(datetime.datetime): _datetime(clock)}
    for name in CLOCKS:
        fakes[id(getattr(time, name))] = clock.seconds
        fakes[id(getattr(time, f"{name}_ns"))] = clock.nanoseconds
    for module_name, module in list(sys.modules.items()):
        if module_name in ("time", "datetime") or _is_foreign(module_name, module):
            for name, value in list(vars(module).items()):
                if id(value) in fakes:
                    yield mock.patch.object(module, name, fakes[id(value)])


def _is_foreign(name: str, module: Any) -> bool:
    """Whether it is neither ours nor a library: where a plugin's own code can be."""
    file = getattr(module, "__file__", None) or ""
    package = name.partition(".")[0]
    known = package in sys.stdlib_module_names or package in ("decoding", "torch", "numpy", "server")
    return bool(file) and not known


def _datetime(clock: Clock) -> type[datetime.datetime]:
    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(clock.seconds(), tz)

        @classmethod
        def utcnow(cls) -> Moved:
            return cls.fromtimestamp(clock.seconds(), datetime.UTC).replace(tzinfo=None)

    return Moved
