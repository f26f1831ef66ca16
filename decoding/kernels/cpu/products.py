"""x W^T (+ bias) for any number of rows, the same for a row in whatever company, on any number of threads.

The weight lies in panels of 16 output columns, [N / 16, K, 16], as float32 or, where that loses nothing, as
bfloat16. Threads take chunks of panels; within a chunk, blocks of rows that stay in the cache meet every panel.

An int8 weight [N / 16, K / 4, 16, 4] is followed by the float32 scale of each column, which products are multiplied
by at last. An int4 weight [N / 16, K / 32, 320 bytes] has its scales inside. Rows come rounded to whole numbers, in
groups with a scale each (`rows.py`); K is padded to whole groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from numba import carray

from decoding.kernels.cpu.compiled import call_at, inner, kernel, kernel_of_counts, record
from decoding.kernels.cpu.rows import gate, make_round_groups, round_row_to_bfloat16
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format, make_tile
from decoding.kernels.cpu.vectors import LANES, load, store

# Rows -> panels of the tiles, fewest rows first: with a vector for each panel's columns (two of eight lanes) and
# one of x, the largest fill the sixteen registers of AVX2 or the thirty-two of AVX-512.
TILES = {1: 4, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1} if VECTORS == 2 else {1: 4, 2: 4, 4: 2, 8: 2, 12: 2}
# Those of groups hold two sums for each number: in int32 and in float32.
GROUP_TILES = {1: 2, 2: 1, 3: 1, 4: 1} if VECTORS == 2 else {1: 4, 2: 4, 4: 2, 6: 2}
MAX_ROWS = max(TILES)
BLOCK_ROWS = 48
MANY_ROWS, THEIR_TILE = 128, 8
"""So many rows do not stay near, but tiles of few do, beside the panels: 512 rows are 5 to 8 % faster on Zen 5."""
ROUNDED_AT_ONCE = 4
AHEAD = 1024
"""Bytes that a single tile over a panel asks ahead of where it reads: the processor's own prefetch starts anew with
each panel and page. 1024 was best of 0, 512 … 4096: a tenth to a fifth faster on an AVX2 machine."""
FEW_ROWS = 2


def tiles_of(form: Format) -> Mapping[int, int]:
    return GROUP_TILES if form.is_grouped else TILES


def make_product(form: Format, *, accumulates: bool = False) -> Any:
    """product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step): some rows times panels `stride` bytes
    apart; ahead and step are the tile's, for the first of the panels.
    """
    run: Any = None
    tiles = tiles_of(form)
    for rows, panels in tiles.items():
        run = _choose(make_tile(rows, panels, form, accumulates=accumulates), rows, panels, run)
    some_of = reduce(_or_fewer, tiles, _all_of)
    one = make_tile(1, 1, form, accumulates=accumulates)

    @inner
    def product(rows, panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step):
        row = 0
        while row < rows:
            some = some_of(rows - row)
            from_a, to = a + row * lda, c + row * ldc
            p = run(some, panels, from_a, lda, b, ldb, stride, turns, to, ldc, ahead, step)
            while p < panels:  # fewer than a tile has: the last of a product
                for r in range(some):
                    out, asked = to + r * ldc + p * 4 * PANEL, ahead + p * stride
                    one(from_a + r * lda, lda, b + p * stride, ldb, stride, turns, out, ldc, asked, stride, step)
                p += 1
            row += some

    return product


def _choose(tile: Any, rows: int, at_once: int, others: Any) -> Any:
    """What runs the tile over as many panels as it can, if it has so many rows, else one of the others."""

    @inner
    def run(panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step):
        p = 0
        while p + at_once <= panels:
            asked = ahead + p * stride
            tile(a, lda, b + p * stride, ldb, stride, turns, c + p * 4 * PANEL, ldc, asked, stride, step)
            p += at_once
        return p

    if others is None:

        @inner
        def choose(_some, panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step):
            return run(panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step)

    else:

        @inner
        def choose(some, panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step):
            if some == rows:
                return run(panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step)
            return others(some, panels, a, lda, b, ldb, stride, turns, c, ldc, ahead, step)

    return choose


@inner
def _all_of(left):
    return left


def _or_fewer(before: Any, rows: int) -> Any:
    """The most rows that one tile takes of those that are left; tiles go up."""

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
def scale_columns(out, ldc, scales, rows, columns):
    for row in range(rows):
        for at in range(0, 4 * columns, 4 * LANES):
            store(out + row * ldc + at, load(out + row * ldc + at) * load(scales + at))


@inner
def leave(_out, _ldc, _scales, _rows, _columns):
    """Products are what they should be."""


ROUND = {
    Format.BFLOAT16_PAIRS: round_row_to_bfloat16,
    Format.INT8: make_round_groups(Format.INT8.depth, starts=True),
    Format.INT4: make_round_groups(Format.INT4.depth, starts=False),
}


def make_round_rows(form: Format) -> Any:
    round_one = ROUND[form]
    row_bytes, step = form.row_bytes, form.depth

    def round_rows(x, rounded, rows, depth, counts):
        """One thread's share of rounding x [rows, depth] for such weights; back when all are done."""
        size = (depth + step - 1) // step * row_bytes
        first = take(counts, ROUNDED_AT_ONCE)
        while first < rows:
            end = min(rows, first + ROUNDED_AT_ONCE)
            for row in range(first, end):
                round_one(x + 4 * row * depth, depth, rounded + row * size)
            finish(counts, end - first)
            first = take(counts, ROUNDED_AT_ONCE)
        wait(counts, rows)

    return round_rows


products = {form: make_product(form) for form in Format}


@inner
def _tiles(rows, most):
    """How many tiles of at most so many rows meet each panel."""
    whole, rest = rows // BLOCK_ROWS, rows % BLOCK_ROWS
    return whole * ((BLOCK_ROWS + most - 1) // most) + (rest + most - 1) // most


@inner
def _ahead(b, following, ldb, turns, done, tiles, has_following):
    """What a tile over panels at b asks for, and its step, after so many of all tiles over them: each asks for its part
    of the panels that follow. A single tile waits for memory all the time, and asks for its own.
    """
    if tiles == 1:
        return b + AHEAD, ldb
    if not has_following:
        return b, ldb
    return following + done * turns * ldb // tiles, ldb // tiles


def make_multiply(form: Format) -> Any:
    """One thread's share of a linear. activated: where silu(gate) * up goes, if the weight's panels alternate so."""
    product = products[form]
    size, step = form.bytes, form.depth
    row_bytes, max_rows = form.row_bytes, max(tiles_of(form))
    settle = scale_columns if form is Format.INT8 else leave

    def multiply(x, weight, bias, out, rows, depth, columns, counts, activated):
        panels = columns // PANEL
        turns = (depth + step - 1) // step
        ldb = PANEL * size
        stride = turns * ldb
        lda, ldc = row_bytes * turns, 4 * columns
        scales = weight + panels * stride
        chunk = 4 if rows <= FEW_ROWS or panels > 1024 else 2
        most = min(max_rows, THEIR_TILE) if rows > MANY_ROWS else max_rows
        tiles = _tiles(rows, most)
        first = take(counts, chunk)
        while first < panels:
            count = min(chunk, panels - first)
            following = take(counts, chunk)  # before this one is done, so that it is on its way by then
            b, done = weight + first * stride, 0
            for top in range(0, rows, BLOCK_ROWS):
                bottom = min(rows, top + BLOCK_ROWS)
                corner = out + top * ldc + first * 4 * PANEL
                row = top
                for left in range((bottom - top + most - 1) // most, 0, -1):
                    some = (bottom - row + left - 1) // left
                    a, c = x + row * lda, out + row * ldc + first * 4 * PANEL
                    ahead, ahead_step = _ahead(
                        b, weight + following * stride, ldb, turns, done, tiles, following < panels
                    )
                    product(some, count, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_step)
                    row += some
                    done += 1
                settle(corner, ldc, scales + 4 * first * PANEL, bottom - top, count * PANEL)
                if bias != 0:
                    add_bias(corner, ldc, bias + first * 4 * PANEL, bottom - top, count * PANEL)
                if activated != 0:
                    gate(corner, ldc, bottom - top, count * PANEL, first * PANEL, activated + top * ldc // 2)
            finish(counts, count)
            first = following

    return multiply


multiplies = {form: kernel_of_counts(9, form.name)(make_multiply(form)) for form in Format}
roundings = {form: kernel_of_counts(5, form.name)(make_round_rows(form)) for form in Format if form.rounds_rows}

LINEAR = record(
    x="address",  # [rows, depth]
    weight="address",  # panels
    bias="address",  # [columns], or 0
    out="address",  # [rows, columns]
    rows="count",
    depth="count",
    columns="count",  # a multiple of PANEL
    counts="address",  # `sharing.py`, of two steps: zero before the call
    rounded="address",  # room for x as the weight's form wants it
    multiply="address",  # one of `multiplies`
    round_rows="address",  # one of `roundings`, or 0
)


def _linear(pointer):
    a = carray(pointer, 1)[0]
    x = a.x
    if a.round_rows != 0:
        x = a.rounded
        call_at(a.round_rows, (a.x, x, a.rows, a.depth, a.counts + COUNTS_BYTES))
    call_at(a.multiply, (x, a.weight, a.bias, a.out, a.rows, a.depth, a.columns, a.counts, 0))


linear = kernel(LINEAR)(_linear)


def addresses(form: Format) -> tuple[int, int]:
    """Of what multiplies by such weights, and of what rounds its rows, or 0."""
    return multiplies[form].address, roundings[form].address if form.rounds_rows else 0
