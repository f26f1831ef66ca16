"""The inner loop of every product: a few rows times a few columns, held in registers.

c[m, n] = sum over k of a[m, k] * b[k, n], added up one k after the other by fused multiply-adds: a number comes out the
same bit for bit in a tile of any size. Columns come in panels of 2 * LANES; in BFLOAT16 panels a 32-bit word holds two
weights, that of column j in its low half and that of column j + LANES in its high half.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from decoding.kernels.vectors import F32, F32S, I32S, I64, LANES, call_fma, floats_at, pointer, splat_scalar

PANEL = 2 * LANES


class Format(Enum):
    """How weights are stored; the value is the bytes of one."""

    FLOAT32 = 4
    BFLOAT16 = 2


def make_tile(rows: int, panels: int, form: Format, *, accumulates: bool = False) -> Any:
    """tile(a, lda, b, ldb, stride, depth, c, ldc), addresses and strides in bytes, depth at least 1.

    ldb leads from one k to the next, stride from one panel to the next. c is written, or, if it accumulates, added to.
    """

    @intrinsic
    def tile(_context: Any, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, depth: Any, c: Any, ldc: Any) -> Any:
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
        a, lda, b, ldb, stride, depth, c, ldc = args
        builder = self.builder
        targets = [self._plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(2 * self.panels)]
        zero = ir.Constant(F32S, [0.0] * LANES)
        before = [floats_at(builder, target) if accumulates else zero for target in targets]
        starts = [self._plus(a, lda, m, 0) for m in range(self.rows)]
        entry, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, at, sums = builder.phi(I64), builder.phi(I64), [builder.phi(F32S) for _ in targets]
        added = self._step([self._number(start, k) for start in starts], self._columns(at, stride), sums)
        following = [builder.add(k, _i64(1)), builder.add(at, ldb), *added]
        for phi, first, again in zip([k, at, *sums], [_i64(0), b, *before], following, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], depth), loop, after)
        builder.position_at_end(after)
        for target, result in zip(targets, added, strict=True):
            builder.store(result, pointer(builder, target), align=4)

    def _step(self, numbers: list[Any], columns: list[Any], sums: list[Any]) -> list[Any]:
        """One k: sums + numbers [rows] x columns."""
        rows = [splat_scalar(self.builder, number) for number in numbers]
        pairs = [(row, column) for row in rows for column in columns]
        return [call_fma(self.builder, row, column, s) for (row, column), s in zip(pairs, sums, strict=True)]

    def _number(self, start: Any, k: Any) -> Any:
        builder = self.builder
        return builder.load(builder.gep(pointer(builder, start), [k], source_etype=F32), typ=F32)

    def _columns(self, at: Any, stride: Any) -> list[Any]:
        panels = [self._plus(at, stride, p, 0) for p in range(self.panels)]
        return [vector for panel in panels for vector in self._panel(panel)]

    def _panel(self, address: Any) -> list[Any]:
        builder = self.builder
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
