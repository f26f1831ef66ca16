"""CPU kernels compiled by numba: products, norms, attention. `available()` says whether this machine can have them.

A number that a kernel computes for a row depends on that row alone: sums run in one fixed order whatever the number of
rows or threads. Kernels take addresses in a record and run on threads of our own (`team.py`).
"""

from __future__ import annotations

import functools
import importlib.util


@functools.cache
def available() -> bool:
    """numba is installed, its target multiplies and adds in one step, and there can be threads (`team.py`)."""
    if importlib.util.find_spec("numba") is None:
        return False
    from decoding.kernels.cpu.team import has_threads  # noqa: PLC0415 - must not be imported without numba
    from decoding.kernels.cpu.vectors import has_fma  # noqa: PLC0415

    return has_fma() and has_threads()


def limit_threads(count: int) -> None:
    """From the next kernel on, at most so many threads work on one; no result depends on it."""
    if available():
        from decoding.kernels.cpu.team import limit_shared_teams  # noqa: PLC0415 - must not be imported without numba

        limit_shared_teams(count)
