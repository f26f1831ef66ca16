"""The number of threads that the worker's forwards use: what was asked for, and less while others need the cores.

Owns what the system says of it (Linux: how long each thread waited for a core, and which cores idle) and how torch and
the kernels are told. Results have the same bits with any number. The decision is `governor.py`'s.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from decoding.worker.governor import SPARE_SECONDS, WINDOW_SECONDS, Governor

Use = Callable[[int], None]
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def default_threads(root: Path = Path("/")) -> int:
    """One for each core that this process may use, by its affinity and by the quota of its control group."""
    quota = _quota(root)
    return min(torch.get_num_threads(), math.ceil(quota)) if quota else torch.get_num_threads()


def _quota(root: Path) -> float | None:
    """Cores; None: no limit, or none that can be read. As a container sees its own group, at the root."""
    group = root / "sys/fs/cgroup"
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit, period = ((group / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(limit) / float(period) if limit not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class System:
    """What Linux counts, in seconds since some beginning."""

    proc: Path = Path("/proc")

    def waited(self) -> float:
        """For a core, all threads of this process together. OSError where the system does not count it."""
        total = 0
        for name in os.listdir(self.proc / "self/task"):
            try:
                total += int((self.proc / "self/task" / name / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended
        return total / 1e9

    def spared(self) -> float:
        """Idle time of the cores that this process may use, with what processes of low priority take, and its own."""
        mine = os.sched_getaffinity(0)
        total = 0
        for line in (self.proc / "stat").read_text().splitlines():
            name, *numbers = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in mine:
                total += int(numbers[1]) + int(numbers[3]) + int(numbers[4])  # nice, idle, waiting for a disk
        return total / _TICKS + time.process_time()


class Threads:
    """Call `ticked` after each tick. use: tells torch and the kernels."""

    def __init__(self, most: int, use: Use, system: System | None = None, clock: Callable[[], float] = time.monotonic):
        self._governor = Governor(most)
        self._use, self._system, self._clock = use, system or System(), clock
        self._seconds, self._waited = 0.0, self._read(self._system.waited)
        self._looked_at, self._spared = clock(), 0.0

    def ticked(self, seconds: float) -> None:
        self._seconds += seconds
        if self._governor.most == 1 or self._seconds < WINDOW_SECONDS or self._waited is None:
            return
        now, before = self._clock(), self._governor.threads
        waited = self._read(self._system.waited) or 0.0
        self._governor.waited(now, max(0.0, waited - self._waited) / self._seconds)
        self._seconds, self._waited = 0.0, waited
        if self._governor.looks_up:
            self._look_up(now, is_fresh=before == self._governor.threads)
        if self._governor.threads != before:
            self._use(self._governor.threads)

    def _look_up(self, now: float, *, is_fresh: bool) -> None:
        elapsed = now - self._looked_at
        if is_fresh and elapsed < SPARE_SECONDS:
            return
        spared = self._read(self._system.spared) or 0.0
        if is_fresh:
            self._governor.spared(now, (spared - self._spared) / elapsed)
        self._looked_at, self._spared = now, spared

    def _read(self, figure: Callable[[], float]) -> float | None:
        try:
            return figure()
        except (OSError, ValueError, IndexError):
            return None
