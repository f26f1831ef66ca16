"""x W^T (+ bias) for any number of rows, the same for a row in whatever company, on any number of threads.

The weight lies in panels of 2 * LANES output columns, [N / 16, K, 16], as float32 or, where that loses nothing, as
bfloat16. Threads take chunks of panels; within a chunk, blocks of rows that stay in the cache meet every panel.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from decoding.kernels.compiled import inner, kernel, record
from decoding.kernels.sharing import finish, take
from decoding.kernels.tile import PANEL, Format, make_tile
from decoding.kernels.vectors import LANES, load, store

MAX_ROWS = 6  # with two column vectors and one of x they fill the sixteen registers of AVX2
BLOCK_ROWS = 48


def make_product(form: Format, *, accumulates: bool = False) -> Any:
    """product(rows, panels, a, lda, b, ldb, stride, depth, c, ldc): 1-6 rows times panels `stride` bytes apart."""

    def tile(rows: int, panels: int = 1) -> Any:
        return make_tile(rows, panels, form, accumulates=accumulates)

    one_by_four, two_by_two = tile(1, 4), tile(2, 2)
    one, two, three, four, five, six = (tile(rows) for rows in range(1, 7))

    @inner
    def product(rows, panels, a, lda, b, ldb, stride, depth, c, ldc):
        p = 0
        if rows == 1:
            while p + 4 <= panels:
                one_by_four(a, lda, b + p * stride, ldb, stride, depth, c + p * 4 * PANEL, ldc)
                p += 4
        elif rows == 2:
            while p + 2 <= panels:
                two_by_two(a, lda, b + p * stride, ldb, stride, depth, c + p * 4 * PANEL, ldc)
                p += 2
        while p < panels:
            at, to = b + p * stride, c + p * 4 * PANEL
            if rows == 1:
                one(a, lda, at, ldb, stride, depth, to, ldc)
            elif rows == 2:
                two(a, lda, at, ldb, stride, depth, to, ldc)
            elif rows == 3:
                three(a, lda, at, ldb, stride, depth, to, ldc)
            elif rows == 4:
                four(a, lda, at, ldb, stride, depth, to, ldc)
            elif rows == 5:
                five(a, lda, at, ldb, stride, depth, to, ldc)
            else:
                six(a, lda, at, ldb, stride, depth, to, ldc)
            p += 1

    return product


@inner
def add_bias(out, ldc, bias, rows, columns):
    for row in range(rows):
        for at in range(0, 4 * columns, 4 * LANES):
            store(out + row * ldc + at, load(out + row * ldc + at) + load(bias + at))


products = {form: make_product(form) for form in Format}


def make_multiply(form: Format, also: Any = None) -> Any:
    """One thread's share of a linear; `also(out, ldc, rows, columns, column, target)` may work on what a chunk gave."""
    product = products[form]
    size = form.value
    continues = also is not None
    proceed = also or add_bias

    @inner
    def multiply(x, weight, bias, out, rows, depth, columns, counts, target):
        panels = columns // PANEL
        ldb = PANEL * size
        stride = depth * ldb
        lda, ldc = 4 * depth, 4 * columns
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
                    product(some, count, a, lda, weight + first * stride, ldb, stride, depth, c, ldc)
                    done += some
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
    counts="address",  # `sharing.py`: zero before the call
)

multiply_float32 = make_multiply(Format.FLOAT32)
multiply_bfloat16 = make_multiply(Format.BFLOAT16)


def _linear_float32(pointer):
    a = carray(pointer, 1)[0]
    multiply_float32(a.x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


def _linear_bfloat16(pointer):
    a = carray(pointer, 1)[0]
    multiply_bfloat16(a.x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0)


linears = {Format.FLOAT32: kernel(LINEAR)(_linear_float32), Format.BFLOAT16: kernel(LINEAR)(_linear_bfloat16)}
