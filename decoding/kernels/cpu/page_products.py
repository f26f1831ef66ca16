"""Products of any number of rows with a page of keys or of values, in tiles of every number of rows.

A linear's product (`products.py`) fills the registers with panels where rows are few. A page of keys is one panel, so
here it is rows that fill them.
"""

from __future__ import annotations

from typing import Any

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format, make_tile

# As many sums as leave registers for the columns and one number of a row: of the sixteen of AVX2, where a panel takes
# two, or the thirty-two of AVX-512.
WIDE = 2 if VECTORS == 2 else 4  # panels
WIDE_ROWS = 3 if VECTORS == 2 else 6
NARROW_ROWS = 6 if VECTORS == 2 else 12


def make_scores(form: Format) -> Any:
    """scores(rows, a, lda, page, turns, c, ldc): c = rows times a page of keys."""
    narrow = _make_product(NARROW_ROWS, 1, form, accumulates=False)

    @inner
    def scores(rows, a, lda, page, turns, c, ldc):
        narrow(rows, a, lda, page, 4 * PANEL, 0, turns, c, ldc)

    return scores


def make_sums(form: Format) -> Any:
    """sums(rows, panels, a, lda, page, turns, c, ldc): c += rows of weights times a page of values."""
    wide = _make_product(WIDE_ROWS, WIDE, form, accumulates=True)
    narrow = _make_product(WIDE_ROWS, 1, form, accumulates=True)

    @inner
    def sums(rows, panels, a, lda, page, turns, c, ldc):
        panel = 4 * PANEL  # bytes
        whole = panels // WIDE * WIDE
        for p in range(0, whole, WIDE):
            wide(rows, a, lda, page + p * panel, panels * panel, panel, turns, c + p * panel, ldc)
        for p in range(whole, panels):
            narrow(rows, a, lda, page + p * panel, panels * panel, panel, turns, c + p * panel, ldc)

    return sums


def _make_product(most: int, panels: int, form: Format, *, accumulates: bool) -> Any:
    """product(rows, a, lda, b, ldb, stride, turns, c, ldc) in tiles of about equally many rows, at most so many."""
    run: Any = None
    for rows in range(1, most + 1):
        run = _choose(make_tile(rows, panels, form, accumulates=accumulates, looks_ahead=False), rows, run)

    @inner
    def product(rows, a, lda, b, ldb, stride, turns, c, ldc):
        row = 0
        for left in range((rows + most - 1) // most, 0, -1):
            some = (rows - row + left - 1) // left
            run(some, a + row * lda, lda, b, ldb, stride, turns, c + row * ldc, ldc)
            row += some

    return product


def _choose(tile: Any, rows: int, others: Any) -> Any:
    """What runs the tile if it has so many rows, else one of the others."""
    if others is None:

        @inner
        def choose(_some, a, lda, b, ldb, stride, turns, c, ldc):
            tile(a, lda, b, ldb, stride, turns, c, ldc)

    else:

        @inner
        def choose(some, a, lda, b, ldb, stride, turns, c, ldc):
            if some == rows:
                tile(a, lda, b, ldb, stride, turns, c, ldc)
            else:
                others(some, a, lda, b, ldb, stride, turns, c, ldc)

    return choose
