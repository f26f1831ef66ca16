"""Products of any number of rows with pages of keys or of values, in tiles of every number of rows.

A linear's product (`products.py`) fills the registers with panels where rows are few. A page of keys is one panel, so
here it is rows that fill them, and two pages at a time.
"""

from __future__ import annotations

from typing import Any

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format, make_tile

# As many sums as leave registers for the columns and one number of a row: of the sixteen of AVX2, where a panel takes
# two, or the thirty-two of AVX-512.
WIDE = 2 if VECTORS == 2 else 4  # panels
WIDE_ROWS = 3 if VECTORS == 2 else 6
PAIR_ROWS = 3 if VECTORS == 2 else 12


def make_scores(form: Format) -> Any:
    """scores(rows, a, lda, page, second, turns, c, ldc, following, other): c = rows times two pages of keys, whose
    scores follow each other. Of one page alone the sums of a few rows would wait for each other. Asks for as much of
    two other pages, too.
    """
    pair = _make_product(PAIR_ROWS, 2, form, accumulates=False)

    @inner
    def scores(rows, a, lda, page, second, turns, c, ldc, following, other):
        pair(rows, a, lda, page, 4 * PANEL, second - page, turns, c, ldc, following, other - following)

    return scores


def make_sums(form: Format) -> Any:
    """sums(rows, panels, a, lda, page, turns, c, ldc, following): c += rows of weights times a page of values.

    Asks for as many bytes from `following` on.
    """
    wide = _make_product(WIDE_ROWS, WIDE, form, accumulates=True)
    narrow = _make_product(WIDE_ROWS, 1, form, accumulates=True)

    @inner
    def sums(rows, panels, a, lda, page, turns, c, ldc, following):
        panel = 4 * PANEL  # bytes
        whole = panels // WIDE * WIDE
        for p in range(0, whole, WIDE):
            b, out, ahead = page + p * panel, c + p * panel, following + p * panel
            wide(rows, a, lda, b, panels * panel, panel, turns, out, ldc, ahead, panel)
        for p in range(whole, panels):
            b, out, ahead = page + p * panel, c + p * panel, following + p * panel
            narrow(rows, a, lda, b, panels * panel, panel, turns, out, ldc, ahead, panel)

    return sums


def _make_product(most: int, panels: int, form: Format, *, accumulates: bool) -> Any:
    """product(rows, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride) in tiles of about equally many rows, at
    most so many, of which the first asks for what is wanted ahead.
    """
    run: Any = None
    for rows in range(1, most + 1):
        run = _choose(make_tile(rows, panels, form, accumulates=accumulates), rows, run)

    @inner
    def product(rows, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride):
        row = 0
        for left in range((rows + most - 1) // most, 0, -1):
            some = (rows - row + left - 1) // left
            at, out = a + row * lda, c + row * ldc
            run(some, at, lda, b, ldb, stride, turns, out, ldc, ahead, ahead_stride, ldb)
            ahead, ahead_stride = b, stride  # which is near
            row += some

    return product


def _choose(tile: Any, rows: int, others: Any) -> Any:
    """What runs the tile if it has so many rows, else one of the others."""
    if others is None:

        @inner
        def choose(_some, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, step):
            tile(a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, step)

    else:

        @inner
        def choose(some, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, step):
            if some == rows:
                tile(a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, step)
            else:
                others(some, a, lda, b, ldb, stride, turns, c, ldc, ahead, ahead_stride, step)

    return choose
