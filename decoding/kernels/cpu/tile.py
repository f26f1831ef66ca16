"""The inner loop of every product: a few rows times a few columns, held in registers.

c[m, n] = sum over k of a[m, k] * b[k, n], added up one k after the other by fused multiply-adds: a number comes out the
same bit for bit in a tile of any size. Columns come in panels of PANEL; where two vectors hold one, a 32-bit word of a
BFLOAT16 panel holds two weights, that of column j in its low half and that of column j + LANES in its high half.

BFLOAT16_PAIRS weights meet rows rounded to bfloat16, two k at a time: c + a[1] * b[1] + a[0] * b[0], each sum rounded
to float32, as AVX512_BF16 does it; products of two such numbers are exact.

INT8 weights meet rows of int16 numbers, two k at a time, and c is int32: whole numbers add up exactly in any order.
Sixteen bits for a row's numbers cost nothing more here, for the products of AVX2 are of such anyway (vpmaddwd; with
VNNI, LLVM fuses the addition into it), and leave the rounding of eight-bit weights as the only one that matters.

INT4 weights are whole numbers 0 … 15 in groups of GROUP k, each with a scale and a least weight in float16, those of
GGML's Q4_1. A group's products add up exactly in int32; the groups follow each other in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from decoding.contract.quantize import Rounding
from decoding.kernels.cpu.rounding import GROUP
from decoding.kernels.cpu.vectors import (
    F32,
    F32S,
    I8S,
    I16S,
    I32S,
    I64,
    LANES,
    add_pairs,
    call_fma,
    floats_at,
    multiply_pairs,
    pointer,
    splat_scalar,
)

PANEL = 16
VECTORS = PANEL // LANES  # that hold a panel's columns
# Bytes. Tiles of several panels and few rows wait for memory, and the processor's own prefetch starts
# anew with each panel and page. 1024 was best of 0, 512 … 4096: a tenth to a fifth faster on an AVX2 machine.
AHEAD = 1024
FEW_ROWS = 2


class Format(Enum):
    """How weights are stored, and what rows they meet."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    BFLOAT16_PAIRS = "bfloat16-pairs"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def rounds_rows(self) -> bool:
        """Whether these weights meet rows of sixteen-bit numbers."""
        return self in (Format.BFLOAT16_PAIRS, Format.INT8, Format.INT4)

    @property
    def depth(self) -> int:
        """How many k one turn of the loop takes."""
        return {Format.BFLOAT16_PAIRS: 2, Format.INT8: 2, Format.INT4: GROUP}.get(self, 1)

    @property
    def bytes(self) -> int:
        """Of one column's weights for one turn."""
        return {Format.FLOAT32: 4, Format.BFLOAT16_PAIRS: 4, Format.INT4: GROUP // 2 + 4}.get(self, 2)

    @property
    def row_bytes(self) -> int:
        """Of one row's numbers for one turn; those of a group are followed by their sum in float32."""
        return 2 * GROUP + 4 if self is Format.INT4 else 4


FORMATS: Mapping[Rounding, Format] = {
    "bfloat16": Format.BFLOAT16_PAIRS,
    "int8": Format.INT8,
    "int4": Format.INT4,
}


def format_for(rounding: Rounding) -> Format | None:
    """None: float32, or bfloat16 where that loses nothing."""
    return None if rounding == "none" else FORMATS[rounding]


def make_tile(rows: int, panels: int, form: Format, *, accumulates: bool = False) -> Any:
    """tile(a, lda, b, ldb, stride, turns, c, ldc), addresses and strides in bytes, at least one turn.

    ldb leads from one turn to the next, stride from one panel to the next. c is written or, if it accumulates,
    added to, which INT4 cannot.
    """

    @intrinsic
    def tile(_context: Any, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, turns: Any, c: Any, ldc: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            if form is Format.INT4:
                _GroupTile(builder, rows, panels).build(args)
            else:
                _Tile(builder, rows, panels, form).build(args, accumulates=accumulates)

        return types.void(*[types.int64] * 8), build

    return tile


@dataclass(frozen=True, slots=True)
class _Addresses:
    builder: Any

    def plus(self, address: Any, stride: Any, times: int, offset: int) -> Any:
        far = self.builder.add(address, self.builder.mul(stride, _i64(times)))
        return self.builder.add(far, _i64(offset))

    def prefetch(self, address: Any) -> None:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), i32, i32, i32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(i32, hint) for hint in (0, 3, 1)]  # to read, keep near, data
        self.builder.call(function, [pointer(self.builder, address), *hints])


@dataclass(frozen=True, slots=True)
class _Tile(_Addresses):
    """Writes the loop over k. Every sum is a phi, so that all of them stay in registers."""

    rows: int
    panels: int
    form: Format

    def build(self, args: Any, *, accumulates: bool) -> None:
        a, lda, b, ldb, stride, turns, c, ldc = args
        builder = self.builder
        targets = [self.plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(VECTORS * self.panels)]
        kind, zero = (I32S, 0) if self.form is Format.INT8 else (F32S, 0.0)
        zero = ir.Constant(kind, [zero] * LANES)
        before = [floats_at(builder, target) if accumulates else zero for target in targets]
        starts = [self.plus(a, lda, m, 0) for m in range(self.rows)]
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
        if self.form is Format.BFLOAT16_PAIRS:
            return add_pairs(self.builder, s, self.builder.bitcast(row, I32S), column)
        if self.form is not Format.INT8:
            return call_fma(self.builder, row, column, s)
        return self.builder.add(s, multiply_pairs(self.builder, self.builder.bitcast(row, I16S), column))

    def _number(self, start: Any, k: Any) -> Any:
        builder = self.builder
        return builder.load(builder.gep(pointer(builder, start), [k], source_etype=F32), typ=F32)

    def _columns(self, at: Any, stride: Any) -> list[Any]:
        panels = [self.plus(at, stride, p, 0) for p in range(self.panels)]
        if self.panels > 1 and self.rows <= FEW_ROWS:
            for panel in panels:
                self.prefetch(self.plus(panel, _i64(AHEAD), 1, 0))
        return [vector for panel in panels for vector in self._panel(panel)]

    def _panel(self, address: Any) -> list[Any]:
        builder = self.builder
        if self.form is Format.INT8:
            parts = [self.plus(address, _i64(2 * LANES), v, 0) for v in range(VECTORS)]
            return [builder.sext(builder.load(pointer(builder, part), align=1, typ=I8S), I16S) for part in parts]
        if self.form is Format.BFLOAT16_PAIRS:
            parts = [self.plus(address, _i64(4 * LANES), v, 0) for v in range(VECTORS)]
            return [builder.load(pointer(builder, part), align=4, typ=I32S) for part in parts]
        if self.form is Format.FLOAT32:
            return [floats_at(builder, self.plus(address, _i64(4 * LANES), v, 0)) for v in range(VECTORS)]
        if VECTORS == 1:
            short = builder.load(pointer(builder, address), align=2, typ=ir.VectorType(ir.IntType(16), LANES))
            wide = builder.shl(builder.zext(short, I32S), ir.Constant(I32S, [16] * LANES))
            return [builder.bitcast(wide, F32S)]
        words = builder.load(pointer(builder, address), align=4, typ=I32S)
        low = builder.shl(words, ir.Constant(I32S, [16] * LANES))
        high = builder.and_(words, ir.Constant(I32S, [0xFFFF0000] * LANES))
        return [builder.bitcast(half, F32S) for half in (low, high)]


@dataclass(frozen=True, slots=True)
class _GroupTile(_Addresses):
    """Writes the loop over groups.

    A word of INT4 weights holds eight k of a column: of each pair of k, the first in its low half and the second in its
    high one, so that a shift and a mask give what multiply_pairs takes.

    A group's sums stay in registers; those over the groups are in c, which is near.
    """

    rows: int
    panels: int

    def build(self, args: Any) -> None:
        a, lda, b, ldb, stride, turns, c, ldc = args
        builder = self.builder
        targets = [self.plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(VECTORS * self.panels)]
        for target in targets:
            builder.store(ir.Constant(F32S, [0.0] * LANES), pointer(builder, target), align=4)
        entry, loop, after = builder.block, builder.append_basic_block("group"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        turn, row, at = (builder.phi(I64) for _ in range(3))
        rows = [self.plus(row, lda, m, 0) for m in range(self.rows)]
        panels = [self.plus(at, stride, p, 0) for p in range(self.panels)]
        if self.panels > 1 and self.rows <= FEW_ROWS:
            for panel in panels:
                for line in range(0, Format.INT4.bytes * PANEL, 64):
                    self.prefetch(builder.add(panel, _i64(AHEAD + line)))
        self._settle(rows, panels, self._sums(rows, panels), targets)
        following = [builder.add(turn, _i64(1)), builder.add(row, _i64(Format.INT4.row_bytes)), builder.add(at, ldb)]
        for phi, first, again in zip([turn, row, at], [_i64(0), a, b], following, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], turns), loop, after)
        builder.position_at_end(after)

    def _sums(self, rows: list[Any], panels: list[Any]) -> list[Any]:
        """Of one group's products, int32: for each row, VECTORS vectors a panel."""
        width = VECTORS * len(panels)
        sums = [ir.Constant(I32S, [0] * LANES)] * (len(rows) * width)
        for word in range(GROUP // 8):
            for at, (panel, v) in enumerate(product(panels, range(VECTORS))):
                words = self._words(panel, word, v)
                for pair in range(4):
                    column = self._pair(words, pair)
                    for m, row in enumerate(rows):
                        products = multiply_pairs(self.builder, self._splat(row, 4 * word + pair), column)
                        sums[m * width + at] = self.builder.add(sums[m * width + at], products)
        return sums

    def _settle(self, rows: list[Any], panels: list[Any], sums: list[Any], targets: list[Any]) -> None:
        """c += scale * sums + least weight * the row's sum."""
        builder = self.builder
        end = GROUP // 2 * PANEL
        scales, leasts = (
            [self._halves(panel, end + start + 2 * LANES * v) for panel in panels for v in range(VECTORS)]
            for start in (0, 2 * PANEL)
        )
        of_rows = [self._number(row, GROUP // 2, F32) for row in rows]
        parts = [(scale, least, of_row) for of_row in of_rows for scale, least in zip(scales, leasts, strict=True)]
        for target, s, (scale, least, of_row) in zip(targets, sums, parts, strict=True):
            whole = call_fma(builder, scale, builder.sitofp(s, F32S), floats_at(builder, target))
            whole = call_fma(builder, least, splat_scalar(builder, of_row), whole)
            builder.store(whole, pointer(builder, target), align=4)

    def _words(self, panel: Any, word: int, v: int) -> Any:
        address = self.builder.add(panel, _i64(4 * (PANEL * word + LANES * v)))
        return self.builder.load(pointer(self.builder, address), align=4, typ=I32S)

    def _pair(self, words: Any, pair: int) -> Any:
        shifted = self.builder.lshr(words, ir.Constant(I32S, [4 * pair] * LANES))
        return self.builder.bitcast(self.builder.and_(shifted, ir.Constant(I32S, [0x000F000F] * LANES)), I16S)

    def _splat(self, row: Any, index: int) -> Any:
        return self.builder.bitcast(splat_scalar(self.builder, self._number(row, index, F32)), I16S)

    def _number(self, row: Any, index: int, kind: Any) -> Any:
        return self.builder.load(pointer(self.builder, self.builder.add(row, _i64(4 * index))), align=4, typ=kind)

    def _halves(self, panel: Any, offset: int) -> Any:
        halves = ir.VectorType(ir.HalfType(), LANES)
        address = pointer(self.builder, self.builder.add(panel, _i64(offset)))
        return self.builder.fpext(self.builder.load(address, align=2, typ=halves), F32S)


def _i64(number: int) -> Any:
    return ir.Constant(I64, number)
