"""Threads that help with a kernel: they join while it runs if they are awake, and nobody waits for one that is not.

OpenMP's threads would not do: a parallel region of theirs ends when all have come, so that on a core shared with the
HTTP process each region could take another slice of the scheduler's. A helper spins briefly after a kernel, then sleeps
on a semaphore. It runs without the interpreter's lock, in compiled code.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import weakref
from typing import Any

import numpy as np
import torch
from numba import carray

from decoding.kernels.compiled import kernel, record
from decoding.kernels.sharing import SPINS, add_shared, call, pause, read_shared

CLOSED = 1 << 40

POOL = record(
    kernel="address",
    record="address",
    lines="address",  # shared counts, a cache line each: orders given, helpers inside, helpers asleep, whether to end
    size="count",  # helpers
    semaphore="address",
    sleep="address",  # sem_wait
    wake="address",  # sem_post
    give_way="address",  # sched_yield
)
_ORDERS, _INSIDE, _ASLEEP, _ENDED = 0, 64, 128, 192


def _lead(pointer):
    """Run the kernel together with whoever comes, and leave nobody inside."""
    pool = carray(pointer, 1)[0]
    add_shared(pool.lines + _INSIDE, CLOSED)
    add_shared(pool.lines + _ORDERS, 1)
    for _ in range(read_shared(pool.lines + _ASLEEP)):
        call(pool.wake, pool.semaphore)
    call(pool.kernel, pool.record)
    add_shared(pool.lines + _INSIDE, -CLOSED)
    spins = 0
    while read_shared(pool.lines + _INSIDE) > -CLOSED:
        spins += 1
        if spins > SPINS:
            call(pool.give_way, 0)
        else:
            pause()


def _help(pointer):
    """A helper's life. Whoever comes in while a kernel is open may read which one: it stays open until all are out."""
    pool = carray(pointer, 1)[0]
    seen, spins = 0, 0
    while read_shared(pool.lines + _ENDED) == 0:
        orders = read_shared(pool.lines + _ORDERS)
        if orders != seen:
            seen, spins = orders, 0
            if add_shared(pool.lines + _INSIDE, 1) >= 0:
                call(pool.kernel, pool.record)
            add_shared(pool.lines + _INSIDE, -1)
        elif spins < SPINS:
            spins += 1
            pause()
        else:
            add_shared(pool.lines + _ASLEEP, 1)
            if read_shared(pool.lines + _ORDERS) == seen and read_shared(pool.lines + _ENDED) == 0:
                call(pool.sleep, pool.semaphore)
            add_shared(pool.lines + _ASLEEP, -1)
            spins = 0


lead, help_out = kernel(POOL)(_lead), kernel(POOL)(_help)


class Team:
    """The calling thread and size - 1 helpers. Not for concurrent use."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._library = ctypes.CDLL(None)
        self._lines = np.zeros(4 * 8 + 8, np.int64)
        self._semaphore = np.zeros(16, np.int64)
        self._pool = np.zeros(1, POOL)
        self._words = self._pool.view(np.int64)
        self.give_way = self._function("sched_yield")
        self._fill()
        entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._lead, self._address = entry(lead.address), self._pool.ctypes.data
        arrays = (self._pool, self._lines, self._semaphore)
        for _ in range(size - 1):
            threading.Thread(target=_live, args=(entry(help_out.address), arrays), daemon=True).start()
        weakref.finalize(self, _dismiss, self._library, arrays, size - 1)

    def run(self, kernel: int, record: int) -> None:
        """Call the compiled kernel at the address `kernel` with the address of its record, on one thread or more."""
        words = self._words
        words[0], words[1] = kernel, record
        self._lead(self._address)

    def _fill(self) -> None:
        lines = self._lines.ctypes.data + -self._lines.ctypes.data % 64
        self._pool["lines"] = lines
        ctypes.c_int64.from_address(lines + _INSIDE).value = -CLOSED
        self._pool["size"] = self.size - 1
        self._pool["semaphore"] = self._semaphore.ctypes.data
        self._library.sem_init(ctypes.c_void_p(self._semaphore.ctypes.data), 0, 0)
        for field, name in (("sleep", "sem_wait"), ("wake", "sem_post")):
            self._pool[field] = self._function(name)
        self._pool["give_way"] = self.give_way

    def _function(self, name: str) -> int:
        return ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value or 0


def _live(helper: Any, arrays: tuple[np.ndarray, ...]) -> None:
    """In a thread of its own; the arrays must live as long as it does."""
    helper(arrays[0].ctypes.data)


def _dismiss(library: Any, arrays: tuple[np.ndarray, ...], helpers: int) -> None:
    pool, _, semaphore = arrays
    ctypes.c_int64.from_address(int(pool["lines"][0]) + _ENDED).value = 1
    for _ in range(helpers):
        library.sem_post(ctypes.c_void_p(semaphore.ctypes.data))


@functools.cache
def shared_team(size: int) -> Team:
    """One team of each size for the whole process: kernels never run side by side."""
    return Team(size)


def default_team() -> Team:
    return shared_team(torch.get_num_threads())


def has_threads() -> bool:
    """Whether the C library has what a team needs: Linux's has, macOS lacks unnamed semaphores."""
    library = ctypes.CDLL(None)
    return sys.platform == "linux" and all(hasattr(library, name) for name in ("sem_init", "sched_yield"))
