"""Kernels that compile in no time."""

from __future__ import annotations

from numba import carray

from decoding.kernels.cpu.compiled import kernel, record
from decoding.kernels.cpu.sharing import add_shared, finish, take, wait


def _nothing(_pointer):  # type: ignore[no-untyped-def]
    return


COUNTING = record(done="address", units="count", counts="address")


def _count(pointer):  # type: ignore[no-untyped-def]
    """Adds one to the number of every unit taken."""
    a = carray(pointer, 1)[0]
    unit = take(a.counts, 1)
    while unit < a.units:
        add_shared(a.done + 8 * unit, 1)
        finish(a.counts, 1)
        unit = take(a.counts, 1)


WAITING = record(counts="address", units="count")


def _wait(pointer):  # type: ignore[no-untyped-def]
    a = carray(pointer, 1)[0]
    wait(a.counts, a.units)


def _finish(pointer):  # type: ignore[no-untyped-def]
    """One unit."""
    finish(carray(pointer, 1)[0].counts, 1)


waiting, finishing = kernel(WAITING)(_wait), kernel(WAITING)(_finish)
TINY, counting = kernel(record(out="address"))(_nothing), kernel(COUNTING)(_count)
