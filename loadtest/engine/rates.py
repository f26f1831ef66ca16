"""What this machine can do at most: products in each format from the nearest cache, and reading memory."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from decoding.kernels.cpu.compiled import kernel_of_counts
from decoding.kernels.cpu.products import tiles_of
from decoding.kernels.cpu.tile import PANEL, Format, make_tile

NEAR_BYTES = 1 << 14  # of panels, which stay in the nearest cache
READ_BYTES = 1 << 28
BEST_OF = 5


def _largest(form: Format) -> tuple[int, int]:
    """Rows and panels of the tile that holds most."""
    return max(tiles_of(form).items(), key=math.prod)


def _make_loop(form: Format) -> Any:
    rows, panels = _largest(form)
    tile = make_tile(rows, panels, form)

    def loop(a, lda, b, ldb, turns, c, ldc, times):  # type: ignore[no-untyped-def]  # noqa: PLR0917
        for _ in range(times):
            tile(a, lda, b, ldb, ldb * turns, turns, c, ldc, b, ldb * turns, ldb)

    return loop


LOOPS = {form: kernel_of_counts(8, form.name)(_make_loop(form)) for form in Format}


def peak(form: Format, threads: int) -> float:
    """Multiplications and additions a second of the largest tile, which meets the same panels again and again."""
    rows, panels = _largest(form)
    columns = PANEL * panels
    turns = max(1, NEAR_BYTES // (form.bytes * columns))
    times = int(1e10 / (rows * columns * form.depth * turns))  # long enough for each thread to have a core of its own
    operations = 2 * rows * columns * form.depth * turns * times * threads
    return operations / _seconds(lambda: _loop(form, rows, columns, turns, times), threads)


def _loop(form: Format, rows: int, columns: int, turns: int, times: int) -> Callable[[], None]:
    lda, ldb, ldc = form.row_bytes * turns, form.bytes * PANEL, 4 * columns
    sizes = (rows * lda, turns * form.bytes * columns, rows * ldc)
    a, b, c = (np.zeros(size + 64, np.uint8) for size in sizes)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)(LOOPS[form].address)
    at = [each.ctypes.data + -each.ctypes.data % 64 for each in (a, b, c)]

    def run(_held: Any = (a, b, c)) -> None:
        call(at[0], lda, at[1], ldb, turns, at[2], ldc, times)

    return run


def reading(threads: int) -> float:
    """Bytes a second that so many threads read from memory."""
    return threads * READ_BYTES / _seconds(lambda: torch.ones(READ_BYTES // 4).sum, threads)


def _seconds(make: Callable[[], Callable[[], Any]], threads: int) -> float:
    """Of the slowest of so many threads that do the same at once; the best of several times."""
    runs = [make() for _ in range(threads)]
    for run in runs:
        run()
    return min(_once(runs) for _ in range(BEST_OF))


def _once(runs: list[Callable[[], Any]]) -> float:
    workers = [threading.Thread(target=run) for run in runs]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started
