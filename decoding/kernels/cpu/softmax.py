"""One query's weights over a block of keys and, from block to block, its running sums: the online softmax of
FlashAttention, arXiv:2205.14135.

Beside float32 queries and keys, weights are powers of e, as exact as float32 allows, and float32. Beside bfloat16 ones
they are powers of 2 of scores that count in those, and rounded to bfloat16, but added up before.

A row's state is two float32 numbers: the largest score so far, and the sum of weights relative to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import float32

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format
from decoding.kernels.cpu.vectors import (
    LANES,
    exp,
    exp2,
    keep_between,
    lane,
    larger,
    largest,
    load,
    load_one,
    splat,
    store,
    store_normal_bfloat16,
    store_one,
    total,
)

INFINITY = float("inf")
STATE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Softmax:
    soften: Callable[..., Any]
    finish: Callable[..., Any]


@inner
def _exponent(x, factor, softcap, unit):
    """Scale a vector of scores, or cap it, and have it count in units."""
    if softcap > 0:
        # tanh(x) = 1 - 2 / (e^2x + 1)
        e = exp(x * splat(float32(2 * factor / softcap)))
        return splat(float32(softcap * unit)) * (splat(float32(1)) - splat(float32(2)) / (e + splat(float32(1))))
    return x * splat(float32(factor * unit))


@inner
def begin(state):
    store_one(state, float32(-INFINITY))
    store_one(state + 4, float32(0))


@inner
def fill(address, size, number):
    """size: in bytes, of whole panels."""
    for at in range(0, size, 4 * LANES):
        store(address + at, splat(number))


def make_softmax(form: Format) -> Softmax:
    is_rounded = form is Format.BFLOAT16_PAIRS
    unit, power = (math.log2(math.e), exp2) if is_rounded else (1.0, exp)
    put, size = (store_normal_bfloat16, 2) if is_rounded else (store, 4)

    @inner
    def scale(scores, keys, first, end, factor, softcap):
        """Scale and cap one row's scores of a block, hide keys outside first <= key < end; returns the largest."""
        hidden = splat(float32(-INFINITY))
        best = hidden
        for key in range(0, keys, LANES):
            v = _exponent(load(scores + 4 * key), factor, softcap, unit)
            if key < first or key + LANES > end:
                v = keep_between(v, first - key, end - key, hidden)
            store(scores + 4 * key, v)
            best = larger(v, best)
        return largest(best)

    @inner
    def exponentiate(scores, keys, peak):
        """Scores become their weights, in place; returns their sum, of each lane of a panel first."""
        height, sums, upper = splat(peak), splat(float32(0)), splat(float32(0))
        for key in range(0, keys, PANEL):
            v = power(load(scores + 4 * key) - height)
            put(scores + size * key, v)
            sums = sums + v
            if VECTORS > 1:
                v = power(load(scores + 4 * (key + LANES)) - height)
                put(scores + size * (key + LANES), v)
                upper = upper + v
        return total(sums + upper)

    @inner
    def power_of_one(x):
        return lane(power(splat(x)), 0)

    @inner
    def soften(scores, sums, width, state, keys, first, end, factor, softcap):
        """One row's weights of a block of so many keys, whole panels, of which it sees first <= key < end; and what
        this does to its state and to its sums [width].
        """
        if first >= end:
            fill(scores, size * keys, float32(0))
            return
        before = load_one(state)
        peak = max(before, scale(scores, keys, first, end, factor, softcap))
        shrink = power_of_one(before - peak)
        store_one(state, peak)
        store_one(state + 4, load_one(state + 4) * shrink + exponentiate(scores, keys, peak))
        if shrink != float32(1):
            for at in range(0, 4 * width, 4 * LANES):
                store(sums + at, load(sums + at) * splat(shrink))

    @inner
    def finish(sums, width, state, sink, has_sink, out):
        """out [width] = sums / weights, a sink counting as one more key."""
        weights, shrink = load_one(state + 4), float32(1)
        if has_sink:
            sink = sink * float32(unit)
            peak = max(load_one(state), sink)
            shrink = power_of_one(load_one(state) - peak)
            weights = weights * shrink + power_of_one(sink - peak)
        factor = shrink / weights
        whole = width // LANES * LANES
        for at in range(0, 4 * whole, 4 * LANES):
            store(out + at, load(sums + at) * splat(factor))
        for at in range(4 * whole, 4 * width, 4):
            store_one(out + at, load_one(sums + at) * factor)

    return Softmax(soften, finish)
