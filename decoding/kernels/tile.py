"""The inner loop of every product: a few rows times a few columns, held in registers.

c[m, n] = sum over k of a[m, k] * b[k, n], added up one k after the other by fused multiply-adds: a number comes out the
same bit for bit in a tile of any size. Column vectors of b lie side by side; in BF16 panels a 32-bit word holds two
weights of bfloat16, that of column j in its low half and that of column j + LANES in its high half.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from decoding.kernels.vectors import _F32, _F32S, _I32S, _I64, LANES, call_fma, floats_at, pointer, splat_scalar


class Format(Enum):
    FLOAT32 = 4
    BFLOAT16 = 2


def make_tile(rows: int, panels: int, form: Format, *, vectors: int = 2, accumulates: bool = False) -> Any:
    """tile(a, lda, b, ldb, panel_stride, depth, c, ldc): addresses and strides in bytes.

    ldb leads from one k to the next, panel_stride from one group of `vectors` columns to the next.
    """
    shape = _Shape(rows, panels, vectors, form, accumulates)

    @intrinsic
    def tile(_context: Any, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, depth: Any, c: Any, ldc: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _build(builder, shape, *args)

        return types.void(*[types.int64] * 8), build

    return tile


class _Shape:
    def __init__(self, rows: int, panels: int, vectors: int, form: Format, accumulates: bool) -> None:
        self.rows, self.panels, self.vectors, self.form, self.accumulates = rows, panels, vectors, form, accumulates


def _build(
    builder: Any, shape: _Shape, a: Any, lda: Any, b: Any, ldb: Any, stride: Any, depth: Any, c: Any, ldc: Any
) -> None:
    starts = [builder.add(a, builder.mul(lda, _i64(m))) for m in range(shape.rows)]
    targets = [
        builder.add(builder.add(c, builder.mul(ldc, _i64(m))), _i64(4 * LANES * v))
        for m in range(shape.rows)
        for v in range(shape.panels * shape.vectors)
    ]
    zero = ir.Constant(_F32S, [0.0] * LANES)
    initial = [floats_at(builder, t) if shape.accumulates else zero for t in targets]
    before = builder.block
    loop, after = builder.append_basic_block("k"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed(">", depth, _i64(0)), loop, after)
    builder.position_at_end(loop)
    k, at = builder.phi(_I64), builder.phi(_I64)
    sums = [builder.phi(_F32S) for _ in targets]
    columns = [
        vector
        for p in range(shape.panels)
        for vector in _columns(builder, shape, builder.add(at, builder.mul(stride, _i64(p))))
    ]
    added = []
    for m in range(shape.rows):
        number = builder.load(builder.gep(pointer(builder, starts[m]), [k], source_etype=_F32), typ=_F32)
        row = splat_scalar(builder, number)
        added += [call_fma(builder, row, column, sums[len(added) + i]) for i, column in enumerate(columns)]
    following, next_at = builder.add(k, _i64(1)), builder.add(at, ldb)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    for phi, first, again in zip([k, at, *sums], [_i64(0), b, *initial], [following, next_at, *added], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, loop)
    builder.position_at_end(after)
    results = []
    for first, last in zip(initial, added, strict=True):
        result = builder.phi(_F32S)
        result.add_incoming(first, before)
        result.add_incoming(last, loop)
        results.append(result)
    for target, result in zip(targets, results, strict=True):
        builder.store(result, pointer(builder, target), align=4)


def _columns(builder: Any, shape: _Shape, address: Any) -> list[Any]:
    """The column vectors of one panel at one k."""
    if shape.form is Format.FLOAT32:
        return [floats_at(builder, builder.add(address, _i64(4 * LANES * v))) for v in range(shape.vectors)]
    words = builder.load(pointer(builder, address), align=4, typ=_I32S)
    low = builder.shl(words, ir.Constant(_I32S, [16] * LANES))
    high = builder.and_(words, ir.Constant(_I32S, [0xFFFF0000] * LANES))
    return [builder.bitcast(half, _F32S) for half in (low, high)]


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)
