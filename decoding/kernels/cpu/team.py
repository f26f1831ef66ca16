"""Threads that help with a kernel: they join while it runs if they are awake, and nobody waits for one that is not.

OpenMP's threads would not do: a parallel region of theirs ends when all have come, so that on a core shared with the
HTTP process each region could take another slice of the scheduler's. A helper spins briefly after a kernel, then sleeps
until the next order. It runs without the interpreter's lock, in compiled code.
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

from decoding.kernels.cpu.compiled import kernel, record
from decoding.kernels.cpu.sharing import (
    FUTEX,
    SPINS,
    add_shared,
    call,
    pause,
    read_shared,
    sleep_while,
    wake,
    wake_all,
    write_shared,
)

CLOSED = 1 << 40

POOL = record(
    kernel="address",
    record="address",
    wanted="count",  # helpers that may come in
    lines="address",  # shared counts, a cache line each: orders given, helpers inside, asleep, leader asleep, the end
    size="count",  # helpers there are
)
_WANTED = 2  # its place in the record
_ORDERS, _INSIDE, _ASLEEP, _LEADER_ASLEEP, _ENDED = 0, 64, 128, 192, 256
_LINES_BYTES = 320


def _lead(pointer):
    """Run the kernel together with whoever comes, and leave nobody inside."""
    pool = carray(pointer, 1)[0]
    if pool.wanted == 0:
        call(pool.kernel, pool.record)
        return
    add_shared(pool.lines + _INSIDE, CLOSED)
    add_shared(pool.lines + _ORDERS, 1)
    sleepers = pool.wanted - (pool.size - read_shared(pool.lines + _ASLEEP))
    if sleepers > 0:
        wake(pool.lines + _ORDERS, sleepers)
    call(pool.kernel, pool.record)
    inside = add_shared(pool.lines + _INSIDE, -CLOSED) - CLOSED
    spins = 0
    while inside > -CLOSED:
        spins += 1
        if spins < SPINS:
            pause()
        elif spins == SPINS:
            write_shared(pool.lines + _LEADER_ASLEEP, 1)
        else:
            sleep_while(pool.lines + _INSIDE, inside)
        inside = read_shared(pool.lines + _INSIDE)
    write_shared(pool.lines + _LEADER_ASLEEP, 0)


def _help(pointer):
    """A helper's life. Whoever comes in while a kernel is open may read which one: it stays open until all are out."""
    pool = carray(pointer, 1)[0]
    seen, spins = 0, 0
    while read_shared(pool.lines + _ENDED) == 0:
        orders = read_shared(pool.lines + _ORDERS)
        if orders != seen:
            seen, spins = orders, SPINS
            others = add_shared(pool.lines + _INSIDE, 1)
            if others >= 0 and others < pool.wanted:
                call(pool.kernel, pool.record)
                spins = 0
            add_shared(pool.lines + _INSIDE, -1)
            if read_shared(pool.lines + _LEADER_ASLEEP) != 0:
                wake(pool.lines + _INSIDE, 1)
        elif spins < SPINS:
            spins += 1
            pause()
        else:
            add_shared(pool.lines + _ASLEEP, 1)
            if read_shared(pool.lines + _ENDED) == 0:
                sleep_while(pool.lines + _ORDERS, seen)
            add_shared(pool.lines + _ASLEEP, -1)
            spins = 0


lead, help_out = kernel(POOL)(_lead), kernel(POOL)(_help)


class Team:
    """The calling thread and size - 1 helpers, of whom only some may be wanted. Not for concurrent use."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lines = np.zeros((_LINES_BYTES + 64) // 8, np.int64)
        self._pool = np.zeros(1, POOL)
        self._words = self._pool.view(np.int64)
        lines = self._lines.ctypes.data + -self._lines.ctypes.data % 64
        ctypes.c_int64.from_address(lines + _INSIDE).value = -CLOSED
        self._pool[0] = (0, 0, size - 1, lines, size - 1)
        entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._lead, self._address = entry(lead.address), self._pool.ctypes.data
        arrays = (self._pool, self._lines)
        for _ in range(size - 1):
            threading.Thread(target=_live, args=(entry(help_out.address), arrays), daemon=True).start()
        weakref.finalize(self, _dismiss, arrays)

    def run(self, kernel: int, record: int) -> None:
        """Call the compiled kernel at the address `kernel` with the address of its record, on one thread or more."""
        words = self._words
        words[0], words[1] = kernel, record
        self._lead(self._address)

    def limit(self, threads: int) -> None:
        """From the next kernel on, at most so many threads, the calling one among them; the others sleep."""
        self._words[_WANTED] = min(threads, self.size) - 1


def _live(helper: Any, arrays: tuple[np.ndarray, ...]) -> None:
    """In a thread of its own; the arrays must live as long as it does."""
    helper(arrays[0].ctypes.data)


def _dismiss(arrays: tuple[np.ndarray, ...]) -> None:
    lines = int(arrays[0]["lines"][0])
    ctypes.c_int64.from_address(lines + _ENDED).value = 1
    ctypes.c_int64.from_address(lines + _ORDERS).value += 1  # whoever is about to sleep does not
    wake_all(lines + _ORDERS)


@functools.cache
def shared_team(size: int) -> Team:
    """One team of each size for the whole process: kernels never run side by side."""
    _shared.append(Team(size))
    return _shared[-1]


_shared: list[Team] = []


def default_team() -> Team:
    return shared_team(torch.get_num_threads())


def limit_shared_teams(threads: int) -> None:
    for team in _shared:
        team.limit(threads)


def has_threads() -> bool:
    """Whether the system has what a team needs: Linux has."""
    return sys.platform == "linux" and FUTEX is not None and hasattr(ctypes.CDLL(None), "syscall")
