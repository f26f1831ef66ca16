"""As the first process of a container the server inherits every orphan, and a zombie stays until its parent waits.

Only what nobody else waits for is taken: asyncio takes its own children within moments, so a zombie that is there at
two looks is an orphan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

LOOK_SECONDS = 5.0
_PROC = Path("/proc")


def inherits_orphans() -> bool:
    return os.getpid() == 1


async def reap_orphans(seconds: float = LOOK_SECONDS) -> None:
    """Goes on until it is cancelled."""
    seen: set[int] = set()
    while True:
        await asyncio.sleep(seconds)
        zombies = _zombies()
        for pid in zombies & seen:
            _reap(pid)
        seen = zombies - seen


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _zombies() -> set[int]:
    """Our children that have ended and were not waited for."""
    return {int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit() and _is_our_zombie(entry)}


def _is_our_zombie(entry: Path) -> bool:
    try:
        state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):  # it is gone
        return False
    return state == "Z" and int(parent) == os.getpid()
