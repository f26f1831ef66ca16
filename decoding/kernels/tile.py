"""The inner loop of every product: a few rows times a few columns, held in registers.

c[m, n] = sum over k of a[m, k] * b[k, n], added up one k after the other by fused multiply-adds: a number comes out the
same bit for bit in a tile of any size. Columns come in panels of 2 * LANES; in BFLOAT16 panels a 32-bit word holds two
weights, that of column j in its low half and that of column j + LANES in its high half.

INT8 weights meet rows of int16 numbers, two k at a time, and c is int32: whole numbers add up exactly in any order.
Sixteen bits for a row's numbers cost nothing more here, for the products of AVX2 are of such anyway (vpmaddwd; with
VNNI, LLVM fuses the addition into it), and leave the rounding of eight-bit weights as the only one that matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from decoding.kernels.vectors import (
    F32,
    F32S,
    I8S,
    I16S,
    I32S,
    I64,
    LANES,
    call_fma,
    floats_at,
    multiply_pairs,
    pointer,
    splat_scalar,
)

PANEL = 2 * LANES
# Bytes. Tiles of several panels are those of few rows, which wait for memory, and the processor's own prefetch starts
# anew with each panel and page. 1024 was best of 0, 512 … 4096: a tenth to a fifth faster on an AVX2 machine.
AHEAD = 1024


class Format(Enum):
    """How weights are stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"

    @property
    def depth(self) -> int:
        """How many k one turn of the loop takes. Their numbers of a row fill 32 bits in any form."""
        return 2 if self is Format.INT8 else 1

    @property
    def bytes(self) -> int:
        """Of one column's weights for one turn."""
        return 4 if self is Format.FLOAT32 else 2


def make_tile(rows: int, panels: int, form: Format, *, accumulates: bool = False) -> Any:
    """tile(a, lda, b, ldb, stride, turns, c, ldc), addresses and strides in bytes, at least one turn.

    ldb leads from one turn to the next, stride from one panel to the next. c is written or, if it accumulates,
    added to.
    """

    @intrinsic
    def tile(_context: Any, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, turns: Any, c: Any, ldc: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _Tile(builder, rows, panels, form).build(args, accumulates=accumulates)

        return types.void(*[types.int64] * 8), build

    return tile


@dataclass(frozen=True, slots=True)
class _Tile:
    """Writes the loop over k. Every sum is a phi, so that all of them stay in registers."""

    builder: Any
    rows: int
    panels: int
    form: Format

    def build(self, args: Any, *, accumulates: bool) -> None:
        a, lda, b, ldb, stride, turns, c, ldc = args
        builder = self.builder
        targets = [self._plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(2 * self.panels)]
        kind, zero = (I32S, 0) if self.form is Format.INT8 else (F32S, 0.0)
        zero = ir.Constant(kind, [zero] * LANES)
        before = [floats_at(builder, target) if accumulates else zero for target in targets]
        starts = [self._plus(a, lda, m, 0) for m in range(self.rows)]
        entry, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, at, sums = builder.phi(I64), builder.phi(I64), [builder.phi(kind) for _ in targets]
        added = self._step([self._number(start, k) for start in starts], self._columns(at, stride), sums)
        following = [builder.add(k, _i64(1)), builder.add(at, ldb), *added]
        for phi, first, again in zip([k, at, *sums], [_i64(0), b, *before], following, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], turns), loop, after)
        builder.position_at_end(after)
        for target, result in zip(targets, added, strict=True):
            builder.store(result, pointer(builder, target), align=4)

    def _step(self, numbers: list[Any], columns: list[Any], sums: list[Any]) -> list[Any]:
        """One turn: sums + numbers [rows] x columns."""
        rows = [splat_scalar(self.builder, number) for number in numbers]
        pairs = [(row, column) for row in rows for column in columns]
        return [self._add(s, row, column) for (row, column), s in zip(pairs, sums, strict=True)]

    def _add(self, s: Any, row: Any, column: Any) -> Any:
        if self.form is not Format.INT8:
            return call_fma(self.builder, row, column, s)
        return self.builder.add(s, multiply_pairs(self.builder, self.builder.bitcast(row, I16S), column))

    def _number(self, start: Any, k: Any) -> Any:
        builder = self.builder
        return builder.load(builder.gep(pointer(builder, start), [k], source_etype=F32), typ=F32)

    def _columns(self, at: Any, stride: Any) -> list[Any]:
        panels = [self._plus(at, stride, p, 0) for p in range(self.panels)]
        if self.panels > 1:
            for panel in panels:
                self._prefetch(self._plus(panel, _i64(AHEAD), 1, 0))
        return [vector for panel in panels for vector in self._panel(panel)]

    def _prefetch(self, address: Any) -> None:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), i32, i32, i32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(i32, hint) for hint in (0, 3, 1)]  # to read, keep near, data
        self.builder.call(function, [pointer(self.builder, address), *hints])

    def _panel(self, address: Any) -> list[Any]:
        builder = self.builder
        if self.form is Format.INT8:
            halves = [self._plus(address, _i64(2 * LANES), v, 0) for v in range(2)]
            return [builder.sext(builder.load(pointer(builder, half), align=1, typ=I8S), I16S) for half in halves]
        if self.form is Format.FLOAT32:
            return [floats_at(builder, self._plus(address, _i64(4 * LANES), v, 0)) for v in range(2)]
        words = builder.load(pointer(builder, address), align=4, typ=I32S)
        low = builder.shl(words, ir.Constant(I32S, [16] * LANES))
        high = builder.and_(words, ir.Constant(I32S, [0xFFFF0000] * LANES))
        return [builder.bitcast(half, F32S) for half in (low, high)]

    def _plus(self, address: Any, stride: Any, times: int, offset: int) -> Any:
        far = self.builder.add(address, self.builder.mul(stride, _i64(times)))
        return self.builder.add(far, _i64(offset))


def _i64(number: int) -> Any:
    return ir.Constant(I64, number)
