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
IS_X86 = platform.machine() in ("x86_64", "AMD64")


@intrinsic
def take(_context: Any, counts: Any, units: Any) -> Any:
    """Take the next so many units; returns the first of them, which may lie beyond the last there is."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0]), args[1], "monotonic")

    return types.int64(types.int64, types.int64), build


@intrinsic
def finish(_context: Any, counts: Any, units: Any) -> Any:
    """Say that so many units are done; whoever waits sees what was written for them."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        finished = builder.add(args[0], ir.Constant(I64, 8))
        builder.atomic_rmw("add", pointer(builder, finished), args[1], "release")

    return types.void(types.int64, types.int64), build


@intrinsic
def _finished(_context: Any, counts: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        finished = builder.add(args[0], ir.Constant(I64, 8))
        return builder.load_atomic(pointer(builder, finished), "acquire", 8, typ=I64)

    return types.int64(types.int64), build


@intrinsic
def _pause(_context: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        name, hints = ("llvm.x86.sse2.pause", []) if IS_X86 else ("llvm.aarch64.hint", [ir.Constant(I32, 1)])
        kind = ir.FunctionType(ir.VoidType(), [hint.type for hint in hints])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), hints)

    return types.void(), build


@intrinsic
def _call(_context: Any, address: Any) -> Any:
    """A C function without arguments."""

    def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])

    return types.void(types.int64), build


@inner
def wait(counts, units, give_way):
    """Until all units of the step are finished. give_way: address of sched_yield."""
    spins = 0
    while _finished(counts) < units:
        spins += 1
        if spins > SPINS:
            _call(give_way)
        else:
            _pause()
