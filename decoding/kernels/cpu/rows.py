"""What happens to each row by itself: norms, residuals, rotation of queries and keys, activations, rounding."""

from __future__ import annotations

import math
from typing import Any

from numba import float32, int64

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.rounding import LARGEST_INPUT
from decoding.kernels.cpu.tile import PANEL
from decoding.kernels.cpu.vectors import (
    INPUT_BYTES,
    LANES,
    exp,
    fma,
    higher,
    highest,
    load,
    load_one,
    nearest,
    splat,
    store,
    store_bfloat16,
    store_inputs,
    store_int32,
    store_one,
    total,
    whole_total,
)

_TINY = 1e-30  # a group of zeros has some scale, too


@inner
def add(x, y, out, width):
    """out = x + y, each [width]; width is a multiple of LANES."""
    for at in range(0, 4 * width, 4 * LANES):
        store(out + at, load(x + at) + load(y + at))


@inner
def _squares(x, width):
    """The sum of the squares of x [width], in PANEL parts whatever the number of lanes."""
    low, high = splat(float32(0)), splat(float32(0))
    for at in range(0, 4 * width, 4 * PANEL):
        v = load(x + at)
        low = fma(v, v, low)
        if LANES < PANEL:
            v = load(x + at + 4 * LANES)
            high = fma(v, v, high)
    return total(low + high)


@inner
def rms_norm(x, weight, eps, out, width):
    """out = weight * x / sqrt(mean(x^2) + eps), each [width], a multiple of PANEL."""
    scale = splat(float32(1) / float32(math.sqrt(_squares(x, width) / float32(width) + float32(eps))))
    for at in range(0, 4 * width, 4 * LANES):
        store(out + at, load(weight + at) * (load(x + at) * scale))


@inner
def rotate(head, cos, sin, width):
    """Rotate the first `width` numbers of a head in place, number i together with number i + width / 2."""
    half = 2 * width  # bytes
    whole = half // (4 * LANES) * (4 * LANES)
    for at in range(0, whole, 4 * LANES):
        a, b = load(head + at), load(head + half + at)
        store(head + at, a * load(cos + at) - b * load(sin + at))
        store(head + half + at, b * load(cos + half + at) + a * load(sin + half + at))
    for at in range(whole, half, 4):
        a, b = load_one(head + at), load_one(head + half + at)
        store_one(head + at, a * load_one(cos + at) - b * load_one(sin + at))
        store_one(head + half + at, b * load_one(cos + half + at) + a * load_one(sin + half + at))


@inner
def silu(v):
    return v / (splat(float32(1)) + exp(splat(float32(0)) - v))


@inner
def gate(out, ldc, rows, columns, column, activated):
    """silu(gate) * up for panels that alternate between gate and up, at their place in `activated` [rows, ldc / 2]."""
    panel = 4 * PANEL  # bytes
    for row in range(rows):
        source, target = out + row * ldc, activated + row * (ldc // 2) + 2 * column
        for at in range(0, 4 * columns, 2 * panel):
            for part in range(0, panel, 4 * LANES):
                v = silu(load(source + at + part)) * load(source + at + panel + part)
                store(target + at // 2 + part, v)


@inner
def round_row_to_bfloat16(x, width, out):
    for at in range(0, 4 * width, 4 * LANES):
        store_bfloat16(out + at // 2, load(x + at))


def make_round_groups(group: int, *, starts: bool) -> Any:
    size = INPUT_BYTES * group
    zero, tiny = float32(0), float32(_TINY)
    largest_input = float32(LARGEST_INPUT)

    @inner
    def round_groups(x, width, out):
        """Each group of x [width] = numbers * scale, to the nearest; behind the numbers their scale, and their sum in
        float32 or what int32 sums start from. What is not finite makes its group's scale NaN. The last group may be
        short, and is filled with zeros.
        """
        for first in range(0, width, group):
            there = min(group, width - first)
            peak, whole = splat(tiny), splat(zero)
            for k in range(0, there, LANES):
                peak = higher(peak, load(x + 4 * (first + k)))
            top = highest(peak)
            factor = splat(largest_input / top)
            for k in range(0, there, LANES):
                v = nearest(load(x + 4 * (first + k)) * factor)
                store_inputs(out + INPUT_BYTES * k, v)
                whole = whole + v
            for k in range(there, group, LANES):
                store_inputs(out + INPUT_BYTES * k, splat(zero))
            store_one(out + size, top / largest_input + (top - top))
            if starts:
                store_int32(out + size + 4, -128 * int64(whole_total(whole)))
            else:
                store_one(out + size + 4, float32(whole_total(whole)))
            out += size + 8

    return round_groups
