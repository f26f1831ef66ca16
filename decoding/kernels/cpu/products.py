"""x W^T (+ bias) for any number of rows, the same for a row in whatever company, on any number of threads.

The weight lies in panels of 16 output columns, [N / 16, K, 16], as float32 or, where that loses nothing, as
bfloat16. Threads take chunks of panels; within a chunk, blocks of rows that stay in the cache meet every panel.

An int8 weight [N / 16, K / 2, 16, 2] is followed by the float32 scale of each column, and a float32 LIMIT_BYTES before
it says how large the numbers it meets may be. Rows come rounded to int16, [T, K], followed by the scale of each
(`rows.py`). Their product is an int32, then a float32 times both scales. An int4 weight [N / 16, K / 32, 320 bytes]
has its limit before it, too, and its scales inside; each GROUP of a row's numbers is followed by their sum.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from numba import carray

from decoding.kernels.cpu.compiled import call_at, inner, kernel, kernel_of_counts, record
from decoding.kernels.cpu.rows import gate, round_groups, round_row, round_row_to_bfloat16
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.tile import FEW_ROWS, PANEL, VECTORS, Format, make_tile
from decoding.kernels.cpu.vectors import LANES, load, load_one, load_whole, splat, store

# Rows -> panels of the tiles, fewest rows first: with a vector for each panel's columns (two of eight lanes) and
# one of x, the largest fill the sixteen registers of AVX2 or the thirty-two of AVX-512.
TILES = {1: 4, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1} if VECTORS == 2 else {1: 4, 2: 4, 4: 2, 8: 2, 12: 2}
MAX_ROWS = max(TILES)
BLOCK_ROWS = 48
ROUNDED_AT_ONCE = 4
LIMIT_BYTES = 64  # a cache line


def make_product(form: Format, *, accumulates: bool = False) -> Any:
    """product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc): some rows times panels `stride` bytes apart."""
    run: Any = None
    for rows, panels in TILES.items():
        run = _choose(make_tile(rows, panels, form, accumulates=accumulates), rows, run)
    some_of = reduce(_or_fewer, TILES, _all_of)
    one = make_tile(1, 1, form, accumulates=accumulates)

    @inner
    def product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc):
        row = 0
        while row < rows:
            some = some_of(rows - row)
            from_a, to = a + row * lda, c + row * ldc
            p = run(some, panels, from_a, lda, b, ldb, stride, turns, to, ldc)
            while p < panels:  # fewer than a tile has: the last of a product
                for r in range(some):
                    one(from_a + r * lda, lda, b + p * stride, ldb, stride, turns, to + r * ldc + p * 4 * PANEL, ldc)
                p += 1
            row += some

    return product


def _choose(tile: Any, rows: int, others: Any) -> Any:
    """What runs the tile over as many panels as it can, if it has so many rows, else one of the others."""
    at_once = TILES[rows]

    @inner
    def run(panels, a, lda, b, ldb, stride, turns, c, ldc):
        p = 0
        while p + at_once <= panels:
            tile(a, lda, b + p * stride, ldb, stride, turns, c + p * 4 * PANEL, ldc)
            p += at_once
        return p

    if others is None:

        @inner
        def choose(_some, panels, a, lda, b, ldb, stride, turns, c, ldc):
            return run(panels, a, lda, b, ldb, stride, turns, c, ldc)

    else:

        @inner
        def choose(some, panels, a, lda, b, ldb, stride, turns, c, ldc):
            if some == rows:
                return run(panels, a, lda, b, ldb, stride, turns, c, ldc)
            return others(some, panels, a, lda, b, ldb, stride, turns, c, ldc)

    return choose


@inner
def _all_of(left):
    return left


def _or_fewer(before: Any, rows: int) -> Any:
    """The most rows that one tile takes of those that are left; TILES go up."""

    @inner
    def some_of(left):
        return rows if left >= rows else before(left)

    return some_of


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
    round_one = {Format.INT4: round_groups, Format.INT8: round_row}.get(form, round_row_to_bfloat16)
    row_bytes, step = form.row_bytes, form.depth

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


def make_multiply(form: Format) -> Any:
    """One thread's share of a linear. activated: where silu(gate) * up goes, if the weight's panels alternate so."""
    product = products[form]
    size, step = form.bytes, form.depth
    row_bytes = form.row_bytes
    settle = {Format.INT8: scale_up, Format.INT4: scale_rows}.get(form, leave)

    def multiply(x, weight, bias, out, rows, depth, columns, counts, activated):
        panels = columns // PANEL
        turns = depth // step
        ldb = PANEL * size
        stride = turns * ldb
        lda, ldc = row_bytes * turns, 4 * columns
        row_scales, column_scales = x + rows * lda, weight + panels * stride
        chunk = 4 if rows <= FEW_ROWS or panels > 1024 else 2
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
                if activated != 0:
                    gate(corner, ldc, bottom - top, count * PANEL, first * PANEL, activated + top * ldc // 2)
            finish(counts, count)
            first = take(counts, chunk)

    return multiply


multiplies = {form: kernel_of_counts(9, form.name)(make_multiply(form)) for form in Format}
roundings = {form: kernel_of_counts(6, form.name)(make_round_rows(form)) for form in Format if form.rounds_rows}

LINEAR = record(
    x="address",  # [rows, depth]
    weight="address",  # panels
    bias="address",  # [columns], or 0
    out="address",  # [rows, columns]
    rows="count",
    depth="count",
    columns="count",  # a multiple of PANEL
    counts="address",  # `sharing.py`, of two steps: zero before the call
    rounded="address",  # room for x as int16 and its scales, where the weight is int8 or int4, or x as bfloat16
    multiply="address",  # one of `multiplies`
    round_rows="address",  # one of `roundings`, or 0
)


def _linear(pointer):
    a = carray(pointer, 1)[0]
    x = a.x
    if a.round_rows != 0:
        x = a.rounded
        call_at(a.round_rows, (a.x, a.weight, x, a.rows, a.depth, a.counts + COUNTS_BYTES))
    call_at(a.multiply, (x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0))


linear = kernel(LINEAR)(_linear)


def addresses(form: Format) -> tuple[int, int]:
    """Of what multiplies by such weights, and of what rounds its rows, or 0."""
    return multiplies[form].address, roundings[form].address if form.rounds_rows else 0
