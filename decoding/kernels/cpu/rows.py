"""What happens to each row by itself: norms, residuals, rotation of queries and keys, activations, rounding."""

from __future__ import annotations

import math

from numba import float32

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.rounding import GROUP
from decoding.kernels.cpu.tile import PANEL
from decoding.kernels.cpu.vectors import (
    LANES,
    exp,
    fma,
    larger,
    largest,
    load,
    load_one,
    nearest,
    splat,
    store,
    store_bfloat16,
    store_one,
    store_rounded,
    total,
)

_TINY = 1e-30  # a row of zeros has some scale, too


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
    half = 2 * width
    for at in range(0, half, 4):
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
def round_row(x, width, limit, out, scale):
    """x [width] = out * scale, to the nearest, out up to the limit. What is not finite makes the scale so."""
    top, odd = _peak(x, width)
    factor = splat(limit / top)
    for at in range(0, 4 * width, 4 * LANES):
        store_rounded(out + at // 2, load(x + at) * factor)
    store_one(scale, top / limit + odd)


@inner
def round_row_to_bfloat16(x, width, _limit, out, _scale):
    for at in range(0, 4 * width, 4 * LANES):
        store_bfloat16(out + at // 2, load(x + at))


@inner
def round_groups(x, width, limit, out, scale):
    """The same, with the sum of each GROUP behind it: exact, for it has fewer than 24 bits."""
    top, odd = _peak(x, width)
    factor = splat(limit / top)
    for at in range(0, 4 * width, 4 * GROUP):
        whole = splat(float32(0))
        for part in range(0, 4 * GROUP, 4 * LANES):
            v = nearest(load(x + at + part) * factor)
            store_rounded(out + part // 2, v)
            whole = whole + v
        store_one(out + 2 * GROUP, total(whole))
        out += 2 * GROUP + 4
    store_one(scale, top / limit + odd)


@inner
def _peak(x, width):
    """The largest magnitude in x [width], above zero; and 0, or NaN where there is what is not finite."""
    peak, odd = splat(float32(0)), splat(float32(0))
    for at in range(0, 4 * width, 4 * LANES):
        v = load(x + at)
        peak = larger(larger(v, splat(float32(0)) - v), peak)
        odd = fma(v, splat(float32(0)), odd)
    return max(float32(_TINY), largest(peak)), total(odd)
