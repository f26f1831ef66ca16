"""How threads share out one step's work and know that it is done.

A step has two counts, units taken and units finished. A thread takes units until none are left, then waits for those
that others hold. Nobody waits for a thread that holds nothing: one that the system keeps off its core delays no one, so
a step runs as fast as the cores there are, with no barrier that all must reach.

Who waits spins for a moment, which is all it takes while every thread has a core, and then sleeps: the thread that it
waits for is off its core, and a core that idles is where the system puts it. With
sched_yield it would stay runnable, so that nobody is moved to its core.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.vectors import I32, I64, pointer

COUNTS_BYTES = 64  # a cache line: taken, finished, sleepers, what they wait for
SPINS = 2000  # tens of microseconds, before a waiting thread sleeps
FUTEX = {"x86_64": 202, "AMD64": 202, "aarch64": 98}.get(platform.machine())  # the number of the system call
_WAIT, _WAKE, _ALL = 128, 129, 1 << 30  # FUTEX_WAIT and FUTEX_WAKE within one process
_FINISHED, _SLEEPERS, _GOAL = 8, 16, 24
_IS_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def add_shared(_context: Any, address: Any, number: Any) -> Any:
    """Add to a count that threads share; returns what it was. Nothing moves across it, in either direction."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


@intrinsic
def read_shared(_context: Any, address: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0]), "seq_cst", 8, typ=I64)

    return types.int64(types.int64), build


@intrinsic
def pause(_context: Any) -> Any:
    """Tell the core that this thread only waits."""

    def build(_target: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        name, hints = ("llvm.x86.sse2.pause", []) if _IS_X86 else ("llvm.aarch64.hint", [ir.Constant(I32, 1)])
        kind = ir.FunctionType(ir.VoidType(), [hint.type for hint in hints])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), hints)

    return types.void(), build


@intrinsic
def write_shared(_context: Any, address: Any, number: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.atomic_rmw("xchg", pointer(builder, args[0]), args[1], "seq_cst")

    return types.void(types.int64, types.int64), build


@intrinsic
def call(_context: Any, function: Any, argument: Any) -> Any:
    """Call the C function at an address with one pointer."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.void(types.int64, types.int64), build


@intrinsic
def _futex(_context: Any, address: Any, operation: Any, number: Any) -> Any:
    """The system call, without a time limit. It looks at the lower half of the count at the address."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I64, [I64], var_arg=True)
        system = cgutils.get_or_insert_function(builder.module, kind, "syscall")
        builder.call(system, [ir.Constant(I64, FUTEX or 0), *args, ir.Constant(I64, 0)])

    return types.void(types.int64, types.int64, types.int64), build


@inner
def sleep_while(address, count):
    """Sleep, if the count at the address is still that one, until somebody wakes whoever sleeps on it, or sooner."""
    _futex(address, _WAIT, count & 0xFFFFFFFF)


@inner
def wake(address, most):
    """Wake at most so many of those that sleep on the count at the address."""
    _futex(address, _WAKE, most)


def wake_all(address: int) -> None:
    """The same, from Python."""
    ctypes.CDLL(None).syscall(ctypes.c_long(FUTEX or 0), ctypes.c_void_p(address), _WAKE, _ALL)


@inner
def take(counts, units):
    """Take the next so many units; returns the first of them, which may lie beyond the last there is."""
    return add_shared(counts, units)


@inner
def finish(counts, units):
    """Say that so many units are done; whoever waits sees what was written for them."""
    done = add_shared(counts + _FINISHED, units) + units
    if read_shared(counts + _SLEEPERS) > 0 and done >= read_shared(counts + _GOAL):
        wake(counts + _FINISHED, _ALL)


@inner
def wait(counts, units):
    """Until all units of the step are finished."""
    for _ in range(SPINS):
        if read_shared(counts + _FINISHED) >= units:
            return
        pause()
    write_shared(counts + _GOAL, units)
    add_shared(counts + _SLEEPERS, 1)
    done = read_shared(counts + _FINISHED)
    while done < units:
        sleep_while(counts + _FINISHED, done)
        done = read_shared(counts + _FINISHED)
