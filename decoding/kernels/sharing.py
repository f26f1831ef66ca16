"""How threads share out one step's work and know that it is done.

A step has two counts, units taken and units finished. A thread takes units until none are left, then waits for those
that others hold. Nobody waits for a thread that holds nothing: one that the system keeps off its core delays no one, so
a step runs as fast as the cores there are, with no barrier that all must reach.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from decoding.kernels.compiled import inner
from decoding.kernels.vectors import I32, I64, pointer

COUNTS_BYTES = 64  # a cache line: taken, finished
SPINS = 2000  # tens of microseconds, before a waiting thread offers its core to others
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
def call(_context: Any, function: Any, argument: Any) -> Any:
    """Call the C function at an address with one pointer."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.void(types.int64, types.int64), build


@inner
def take(counts, units):
    """Take the next so many units; returns the first of them, which may lie beyond the last there is."""
    return add_shared(counts, units)


@inner
def finish(counts, units):
    """Say that so many units are done; whoever waits sees what was written for them."""
    add_shared(counts + 8, units)


@inner
def wait(counts, units, give_way):
    """Until all units of the step are finished. give_way: address of sched_yield."""
    spins = 0
    while read_shared(counts + 8) < units:
        spins += 1
        if spins > SPINS:
            call(give_way, 0)
        else:
            pause()
