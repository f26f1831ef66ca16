"""The vector arithmetic that kernels are written in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from decoding.kernels.cpu.vectors import LANES, exp, keep_between, load, splat, store, total  # noqa: E402


def mapped(function: Any, numbers: np.ndarray) -> np.ndarray:
    """The function of every number, LANES at a time."""

    @numba.njit
    def run(source, target, count):  # type: ignore[no-untyped-def]
        for at in range(0, 4 * count, 4 * LANES):
            store(target + at, function(load(source + at)))

    padded = np.pad(numbers, (0, -len(numbers) % LANES))
    found = np.empty_like(padded)
    run(padded.ctypes.data, found.ctypes.data, len(padded))
    return found[: len(numbers)]


def test_exp_is_as_good_as_float32_allows() -> None:
    x = np.linspace(-87, 88, 8000, dtype=np.float32)
    found, expected = mapped(exp, x), np.exp(x.astype(np.float64))
    # r + 1, its sum with the rest of the series, r itself and the rest are each half an ulp off, of numbers down to 0.7
    assert np.abs(found / expected - 1).max() < 2 * np.finfo(np.float32).eps


def test_exp_of_the_extremes() -> None:
    x = np.array([0, -np.inf, -200, 200, np.nan, -0.0, 1, -1], np.float32)
    found = mapped(exp, x)
    assert found[0] == found[5] == 1
    assert found[1] == found[2] == 0
    assert found[3] > 1e38
    assert np.isnan(found[4])


def test_lanes_outside_a_range_are_replaced() -> None:
    @numba.njit
    def middle(v):  # type: ignore[no-untyped-def]
        return keep_between(v, 2, 5, splat(numba.float32(-1)))

    assert mapped(middle, np.arange(LANES, dtype=np.float32)).tolist() == [-1, -1, 2, 3, 4, *[-1] * (LANES - 5)]


def test_the_total_is_of_all_lanes() -> None:
    @numba.njit
    def everywhere(v):  # type: ignore[no-untyped-def]
        return splat(total(v))

    assert mapped(everywhere, np.arange(LANES, dtype=np.float32))[0] == sum(range(LANES))
