"""The inner loop of every product: a few rows times a few columns, held in registers.

c[m, n] = sum over k of a[m, k] * b[k, n], added up one k after the other by fused multiply-adds: a number comes out the
same bit for bit in a tile of any size. Columns come in panels of PANEL; where two vectors hold one, a 32-bit word of a
BFLOAT16 panel holds two weights, that of column j in its low half and that of column j + LANES in its high half.

BFLOAT16_PAIRS weights meet rows rounded to bfloat16, two k at a time: c + a[1] * b[1] + a[0] * b[0], each sum rounded
to float32, as AVX512_BF16 does it; products of two such numbers are exact.

INT8 and INT4 weights meet rows of whole numbers up to 127, four k at a time, in groups that share a scale. A group's
products add up exactly, in any order, in int32; the groups follow each other in float32. Weights are unsigned, as
vpdpbusd takes them: those of INT8 are 128 too large, and the sums start from -128 times the sum of the row's group.

INT4 weights are whole numbers 0 … 15 in groups of GROUP k, each with a scale and a least weight in float16, those of
GGML's Q4_1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from decoding.contract.quantize import Rounding
from decoding.kernels.cpu.rounding import GROUP, INPUT_GROUP
from decoding.kernels.cpu.vectors import (
    F32,
    F32S,
    I32,
    I32S,
    I64,
    INPUT_BYTES,
    LANES,
    add_fours,
    add_pairs,
    call_fma,
    floats_at,
    pointer,
    splat_scalar,
)

PANEL = 16
VECTORS = PANEL // LANES  # that hold a panel's columns
LINE = 64  # bytes that come from memory together
TILE_ARGUMENTS = 11
ROOM = 13 if VECTORS == 2 else 28  # registers for sums, of sixteen or thirty-two


class Format(Enum):
    """How weights are stored, and what rows they meet."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    BFLOAT16_PAIRS = "bfloat16-pairs"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def rounds_rows(self) -> bool:
        """Whether these weights meet rows of bfloat16 or of whole numbers."""
        return self is Format.BFLOAT16_PAIRS or self.is_grouped

    @property
    def is_grouped(self) -> bool:
        """Whether rows come in groups of `depth` whole numbers that share a scale."""
        return self in (Format.INT8, Format.INT4)

    @property
    def depth(self) -> int:
        """How many k one turn of the loop takes."""
        return {Format.BFLOAT16_PAIRS: 2, Format.INT8: INPUT_GROUP, Format.INT4: GROUP}.get(self, 1)

    @property
    def bytes(self) -> int:
        """Of one column's weights for one turn."""
        sizes = {Format.BFLOAT16: 2, Format.INT8: INPUT_GROUP, Format.INT4: GROUP // 2 + 4}
        return sizes.get(self, 4)

    @property
    def row_bytes(self) -> int:
        """Of one row's numbers for one turn; a group's are followed by its scale and what comes of its sum."""
        return INPUT_BYTES * self.depth + 8 if self.is_grouped else 4

    def turns(self, depth: int) -> int:
        return -(-depth // self.depth)


FORMATS: Mapping[Rounding, Format] = {
    "bfloat16": Format.BFLOAT16_PAIRS,
    "int8": Format.INT8,
    "int4": Format.INT4,
}


def format_for(rounding: Rounding) -> Format | None:
    """None: float32, or bfloat16 where that loses nothing."""
    return None if rounding == "none" else FORMATS[rounding]


def make_tile(rows: int, panels: int, form: Format, *, accumulates: bool = False) -> Any:
    """tile(a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, ahead_step): addresses, strides and steps in
    bytes, at least one turn.

    ldb leads from one turn to the next, stride from one panel to the next. c is written or, if it accumulates, added
    to, which those of groups cannot be.

    In each turn the tile asks for as much memory as it reads of b, at `ahead` and for each further panel a stride on,
    and goes on by a step. To ask for all at once would keep the processor from computing until most of it has come.
    """

    @intrinsic
    def tile(
        _context: Any, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, turns: Any, c: Any, ldc: Any,
        ahead: Any, ahead_stride: Any, ahead_step: Any,
    ) -> Any:  # fmt: skip
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            write_tile(builder, args, rows, panels, form, accumulates=accumulates)

        return types.void(*[types.int64] * TILE_ARGUMENTS), build

    return tile


def write_tile(builder: Any, args: Any, rows: int, panels: int, form: Format, *, accumulates: bool = False) -> None:
    """The tile's code, for whatever processor the builder's module is compiled for."""
    if form.is_grouped:
        _GroupTile(builder, rows, panels, form).build(args)
    else:
        _Tile(builder, rows, panels, form).build(args, accumulates=accumulates)


@dataclass(frozen=True, slots=True)
class _Addresses:
    builder: Any

    def plus(self, address: Any, stride: Any, times: Any, offset: int) -> Any:
        far = self.builder.add(address, self.builder.mul(stride, _i64(times) if isinstance(times, int) else times))
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
        a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, ahead_step = args
        builder = self.builder
        targets = [self.plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(VECTORS * self.panels)]
        zero = ir.Constant(F32S, [0.0] * LANES)
        before = [floats_at(builder, target) if accumulates else zero for target in targets]
        starts = [self.plus(a, lda, m, 0) for m in range(self.rows)]
        entry, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, at, sums = builder.phi(I64), builder.phi(I64), [builder.phi(F32S) for _ in targets]
        for p in range(self.panels):
            self.prefetch(self.plus(self.plus(ahead, ahead_stride, p, 0), ahead_step, k, 0))
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
        return call_fma(self.builder, row, column, s)

    def _number(self, start: Any, k: Any) -> Any:
        builder = self.builder
        return builder.load(builder.gep(pointer(builder, start), [k], source_etype=F32), typ=F32)

    def _columns(self, at: Any, stride: Any) -> list[Any]:
        panels = [self.plus(at, stride, p, 0) for p in range(self.panels)]
        return [vector for panel in panels for vector in self._panel(panel)]

    def _panel(self, address: Any) -> list[Any]:
        builder = self.builder
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

    A word of INT8 weights holds four k of a column; one of INT4 weights eight: the first four in the low halves of its
    bytes, the others in the high ones.

    A group's sums stay in registers; those over the groups, too, where there is room for both, else in c, which is
    near.
    """

    rows: int
    panels: int
    form: Format

    def build(self, args: Any) -> None:
        a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, ahead_step = args
        builder = self.builder
        targets = [self.plus(c, ldc, m, 4 * LANES * v) for m in range(self.rows) for v in range(VECTORS * self.panels)]
        zero = ir.Constant(F32S, [0.0] * LANES)
        is_near = 2 * len(targets) > ROOM
        if is_near:
            for target in targets:
                builder.store(zero, pointer(builder, target), align=4)
        entry, loop, after = builder.block, builder.append_basic_block("group"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        turn, row, at = (builder.phi(I64) for _ in range(3))
        held = [] if is_near else [builder.phi(F32S) for _ in targets]
        rows = [self.plus(row, lda, m, 0) for m in range(self.rows)]
        panels = [self.plus(at, stride, p, 0) for p in range(self.panels)]
        asked = self.builder.add(ahead, self.builder.mul(turn, ahead_step))
        sums = self._sums(rows, panels, [self.plus(asked, ahead_stride, p, 0) for p in range(self.panels)])
        added = self._settle(rows, panels, sums, held or [floats_at(builder, target) for target in targets])
        if is_near:
            self._store(added, targets)
        following = [builder.add(turn, _i64(1)), builder.add(row, _i64(self.form.row_bytes)), builder.add(at, ldb)]
        following += [] if is_near else added
        firsts = [_i64(0), a, b, *[zero] * len(held)]
        for phi, first, again in zip([turn, row, at, *held], firsts, following, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(again, loop)
        builder.cbranch(builder.icmp_signed("<", following[0], turns), loop, after)
        builder.position_at_end(after)
        if not is_near:
            self._store(added, targets)

    def _store(self, results: list[Any], targets: list[Any]) -> None:
        for target, result in zip(targets, results, strict=True):
            self.builder.store(result, pointer(self.builder, target), align=4)

    def _sums(self, rows: list[Any], panels: list[Any], ahead: list[Any]) -> list[Any]:
        """Of one group's products, int32: for each row, VECTORS vectors a panel."""
        starts = [self._start(row) for row in rows]
        sums = [start for start in starts for _ in range(VECTORS * len(panels))]
        for fours, columns in enumerate(self._columns(panels, ahead)):
            numbers = [self.builder.add(row, _i64(4 * INPUT_BYTES * fours)) for row in rows]
            pairs = [(number, column) for number in numbers for column in columns]
            sums = [add_fours(self.builder, s, column, number) for (number, column), s in zip(pairs, sums, strict=True)]
        return sums

    def _start(self, row: Any) -> Any:
        if self.form is Format.INT4:
            return ir.Constant(I32S, [0] * LANES)
        return splat_scalar(self.builder, self._behind(row, 4, I32))

    def _columns(self, panels: list[Any], ahead: list[Any]) -> Iterator[list[Any]]:
        """For every four k of a group a vector of bytes for each vector of columns."""
        if self.form is Format.INT8:
            yield from (self._words(panels, ahead, word) for word in range(INPUT_GROUP // 4))
            return
        for word in range(GROUP // 8):
            words = self._words(panels, ahead, word)
            for shift in (0, 4):
                shifted = [self.builder.lshr(each, ir.Constant(I32S, [shift] * LANES)) for each in words]
                yield [self.builder.and_(each, ir.Constant(I32S, [0x0F0F0F0F] * LANES)) for each in shifted]

    def _words(self, panels: list[Any], ahead: list[Any], word: int) -> list[Any]:
        for place in ahead:
            self.prefetch(self.builder.add(place, _i64(4 * PANEL * word)))
        offsets = [4 * (PANEL * word + LANES * v) for v in range(VECTORS)]
        places = [self.builder.add(panel, _i64(offset)) for panel in panels for offset in offsets]
        return [self.builder.load(pointer(self.builder, place), align=4, typ=I32S) for place in places]

    def _settle(self, rows: list[Any], panels: list[Any], sums: list[Any], before: list[Any]) -> list[Any]:
        """before + the row's scale * sums; of INT4, times the column's scale, and + least weight * the row's sum."""
        builder = self.builder
        scales = [splat_scalar(builder, self._behind(row, 0, F32)) for row in rows]
        wholes = [builder.sitofp(s, F32S) for s in sums]
        if self.form is Format.INT4:
            wholes = self._weighed(rows, panels, wholes)
        width = VECTORS * len(panels)
        return [call_fma(builder, scales[at // width], wholes[at], before[at]) for at in range(len(sums))]

    def _weighed(self, rows: list[Any], panels: list[Any], wholes: list[Any]) -> list[Any]:
        builder = self.builder
        end = GROUP // 2 * PANEL
        scales, leasts = (
            [self._halves(panel, end + start + 2 * LANES * v) for panel in panels for v in range(VECTORS)]
            for start in (0, 2 * PANEL)
        )
        of_rows = [splat_scalar(builder, self._behind(row, 4, F32)) for row in rows]
        parts = [(scale, least, of_row) for of_row in of_rows for scale, least in zip(scales, leasts, strict=True)]
        return [
            call_fma(builder, scale, whole, builder.fmul(least, of_row))
            for whole, (scale, least, of_row) in zip(wholes, parts, strict=True)
        ]

    def _behind(self, row: Any, offset: int, kind: Any) -> Any:
        """What follows a group's numbers."""
        address = self.builder.add(row, _i64(self.form.row_bytes - 8 + offset))
        return self.builder.load(pointer(self.builder, address), align=4, typ=kind)

    def _halves(self, panel: Any, offset: int) -> Any:
        halves = ir.VectorType(ir.HalfType(), LANES)
        address = pointer(self.builder, self.builder.add(panel, _i64(offset)))
        return self.builder.fpext(self.builder.load(address, align=2, typ=halves), F32S)


def _i64(number: int) -> Any:
    return ir.Constant(I64, number)
