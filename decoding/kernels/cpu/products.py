"""x W^T (+ bias) for any number of rows, the same for a row in whatever company, on any number of threads.

The weight lies in panels of 2 * LANES output columns, [N / 16, K, 16], as float32 or, where that loses nothing, as
bfloat16. Threads take chunks of panels; within a chunk, blocks of rows that stay in the cache meet every panel.

An int8 weight [N / 16, K / 2, 16, 2] is followed by the float32 scale of each column, and a float32 LIMIT_BYTES before
it says how large the numbers it meets may be. Rows come rounded to int16, [T, K], followed by the scale of each
(`rows.py`). Their product is an int32, then a float32 times both scales. An int4 weight [N / 16, K / 32, 320 bytes]
has its limit before it, too, and its scales inside; each GROUP of a row's numbers is followed by their sum.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from decoding.kernels.cpu.compiled import inner, kernel, record
from decoding.kernels.cpu.rows import round_groups, round_row
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.tile import PANEL, Format, make_tile
from decoding.kernels.cpu.vectors import LANES, load, load_one, load_whole, splat, store

MAX_ROWS = 6  # with two column vectors and one of x they fill the sixteen registers of AVX2
BLOCK_ROWS = 48
ROUNDED_AT_ONCE = 4
LIMIT_BYTES = 64  # a cache line


def make_product(form: Format, *, accumulates: bool = False) -> Any:
    """product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc): 1-6 rows times panels `stride` bytes apart."""

    def tile(rows: int, panels: int = 1) -> Any:
        return make_tile(rows, panels, form, accumulates=accumulates)

    one_by_four, two_by_two = tile(1, 4), tile(2, 2)
    one, two, three, four, five, six = (tile(rows) for rows in range(1, 7))

    @inner
    def product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc):
        p = 0
        if rows == 1:
            while p + 4 <= panels:
                one_by_four(a, lda, b + p * stride, ldb, stride, turns, c + p * 4 * PANEL, ldc)
                p += 4
        elif rows == 2:
            while p + 2 <= panels:
                two_by_two(a, lda, b + p * stride, ldb, stride, turns, c + p * 4 * PANEL, ldc)
                p += 2
        while p < panels:
            at, to = b + p * stride, c + p * 4 * PANEL
            if rows == 1:
                one(a, lda, at, ldb, stride, turns, to, ldc)
            elif rows == 2:
                two(a, lda, at, ldb, stride, turns, to, ldc)
            elif rows == 3:
                three(a, lda, at, ldb, stride, turns, to, ldc)
            elif rows == 4:
                four(a, lda, at, ldb, stride, turns, to, ldc)
            elif rows == 5:
                five(a, lda, at, ldb, stride, turns, to, ldc)
            else:
                six(a, lda, at, ldb, stride, turns, to, ldc)
            p += 1

    return product


@inner
def add_bias(out, ldc, bias, rows, columns):
    for row in range(rows):
        for at in range(0, 4 * columns, 4 * LANES):
            store(out + row * ldc + at, load(out + row * ldc + at) + load(bias + at))


@inner
def scale_up(out, ldc, row_scales, column_scales, rows, columns):
    """int32 products as float32 ones, in place."""
    for row in range(rows):
        scale = splat(load_one(row_scales + 4 * row))
        for at in range(0, 4 * columns, 4 * LANES):
            to = out + row * ldc + at
            store(to, load_whole(to) * load(column_scales + at) * scale)


@inner
def scale_rows(out, ldc, row_scales, _column_scales, rows, columns):
    for row in range(rows):
        scale = splat(load_one(row_scales + 4 * row))
        for at in range(row * ldc, row * ldc + 4 * columns, 4 * LANES):
            store(out + at, load(out + at) * scale)


@inner
def leave(_out, _ldc, _row_scales, _column_scales, _rows, _columns):
    """float32 products are what they should be."""


def make_round_rows(form: Format) -> Any:
    round_one = round_groups if form is Format.INT4 else round_row
    row_bytes, step = form.row_bytes, form.depth

    @inner
    def round_rows(x, weight, rounded, rows, depth, counts):
        """One thread's share of rounding x [rows, depth] to int16 for that weight; back when all are done."""
        limit = load_one(weight - LIMIT_BYTES)
        size = depth // step * row_bytes
        first = take(counts, ROUNDED_AT_ONCE)
        while first < rows:
            end = min(rows, first + ROUNDED_AT_ONCE)
            for row in range(first, end):
                round_one(x + 4 * row * depth, depth, limit, rounded + row * size, rounded + rows * size + 4 * row)
            finish(counts, end - first)
            first = take(counts, ROUNDED_AT_ONCE)
        wait(counts, rows)

    return round_rows


products = {form: make_product(form) for form in Format}


def make_multiply(form: Format, also: Any = None) -> Any:
    """One thread's share of a linear; `also(out, ldc, rows, columns, column, target)` may work on what a chunk gave."""
    product = products[form]
    size, step = form.bytes, form.depth
    row_bytes = form.row_bytes
    settle = {Format.INT8: scale_up, Format.INT4: scale_rows}.get(form, leave)
    continues = also is not None
    proceed = also or add_bias

    @inner
    def multiply(x, weight, bias, out, rows, depth, columns, counts, target):
        panels = columns // PANEL
        turns = depth // step
        ldb = PANEL * size
        stride = turns * ldb
        lda, ldc = row_bytes * turns, 4 * columns
        row_scales, column_scales = x + rows * lda, weight + panels * stride
        chunk = 4 if rows == 1 or panels > 1024 else 2
        first = take(counts, chunk)
        while first < panels:
            count = min(chunk, panels - first)
            for top in range(0, rows, BLOCK_ROWS):
                bottom = min(rows, top + BLOCK_ROWS)
                corner = out + top * ldc + first * 4 * PANEL
                done = top
                for left in range((bottom - top + MAX_ROWS - 1) // MAX_ROWS, 0, -1):
                    some = (bottom - done + left - 1) // left
                    a, c = x + done * lda, out + done * ldc + first * 4 * PANEL
                    product(some, count, a, lda, weight + first * stride, ldb, stride, turns, c, ldc)
                    done += some
                settle(
                    corner, ldc, row_scales + 4 * top, column_scales + 4 * first * PANEL, bottom - top, count * PANEL
                )
                if bias != 0:
                    add_bias(corner, ldc, bias + first * 4 * PANEL, bottom - top, count * PANEL)
                if continues:
                    proceed(corner, ldc, bottom - top, count * PANEL, first * PANEL, target + top * ldc // 2)
            finish(counts, count)
            first = take(counts, chunk)

    return multiply


LINEAR = record(
    x="address",  # [rows, depth]
    weight="address",  # panels
    bias="address",  # [columns], or 0
    out="address",  # [rows, columns]
    rows="count",
    depth="count",
    columns="count",  # a multiple of PANEL
    counts="address",  # `sharing.py`, of two steps: zero before the call
    rounded="address",  # room for x as int16 and its scales, where the weight is int8 or int4
)

_float32, _bfloat16, _int8, _int4 = (make_multiply(form) for form in Format)
_round_for_int8, _round_for_int4 = make_round_rows(Format.INT8), make_round_rows(Format.INT4)


def _linear_float32(pointer):
    a = carray(pointer, 1)[0]
    _float32(a.x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


def _linear_bfloat16(pointer):
    a = carray(pointer, 1)[0]
    _bfloat16(a.x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


def _linear_int8(pointer):
    a = carray(pointer, 1)[0]
    _round_for_int8(a.x, a.weight, a.rounded, a.rows, a.depth, a.counts + COUNTS_BYTES)
    _int8(a.rounded, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


def _linear_int4(pointer):
    a = carray(pointer, 1)[0]
    _round_for_int4(a.x, a.weight, a.rounded, a.rows, a.depth, a.counts + COUNTS_BYTES)
    _int4(a.rounded, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


linears = {
    Format.FLOAT32: kernel(LINEAR)(_linear_float32),
    Format.BFLOAT16: kernel(LINEAR)(_linear_bfloat16),
    Format.INT8: kernel(LINEAR)(_linear_int8),
    Format.INT4: kernel(LINEAR)(_linear_int4),
}
