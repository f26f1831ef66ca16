"""How much memory this process may still take, from the kernel's own books. Linux first; elsewhere a cautious guess."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GUESS = 8 << 30


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes: what the kernel calls available (page cache counts), at most what the container's limit leaves."""
    return min(_machine(meminfo), _container(cgroup))


def give_back() -> None:
    """Return to the system what C code has freed and the allocator keeps. Does nothing where the C library cannot."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _machine(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return GUESS
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] << 10 if kibibytes else GUESS


def _container(cgroup: Path) -> int:
    """What is left under the cgroup's limit; a huge number where there is no limit."""
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return 1 << 62
    return 1 << 62 if limit == "max" else max(int(limit) - int(used), 0)
