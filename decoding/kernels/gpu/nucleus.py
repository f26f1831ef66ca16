"""Triton kernel of top-p: the border of the nucleus by bisection, without a sort and without a look from the host.

Probabilities are whole numbers of 2^-62, whose sums round nowhere: how often a row is read and in which blocks changes
nothing. A first reading gathers what can be in the nucleus at all, which is seldom more than a few thousand ids; the
bisection, over the bits of a score, reads those alone.
"""

import triton
import triton.language as tl

_UNIT = tl.constexpr(float(2**62))


@triton.jit
def _ordered(scores):
    """Floats in the order of integers, int32."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # a negative zero is a zero
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mass(scores, probabilities, count, border, BLOCK: tl.constexpr):
    """Of all scores at the border or above: their probability, and how many they are."""
    mass, number = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        is_there = at < count
        x = tl.load(scores + at, mask=is_there, other=float("-inf"))
        is_in = is_there & (_ordered(x).to(tl.int64) >= border)
        p = (tl.load(probabilities + at, mask=is_in, other=0.0) * _UNIT).to(tl.int64)
        mass += tl.sum(p, 0)
        number += tl.sum(is_in.to(tl.int64), 0)
    return mass, number


@triton.jit
def cut_nucleus(
    scores,  # float32 [rows, vocab]
    probabilities,  # float32 [rows, vocab]
    ps,  # float32 [rows]
    keeps,  # int64 [rows]: at least so many stay
    some_scores,  # float32 [rows, MOST]
    some_probabilities,
    vocab,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Exclude from one row what is outside of the nucleus; the lower ids stay among equals. Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * vocab
    probabilities += row * vocab
    some_scores += row * MOST
    some_probabilities += row * MOST
    p = tl.load(ps + row)
    wanted, keep = (p * _UNIT).to(tl.int64), tl.load(keeps + row)
    # Of ids as improbable as this, all together have less than what is outside.
    floor = (1.0 - p) / vocab
    found, mass = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        each = tl.load(probabilities + at, mask=at < vocab, other=0.0)
        is_taken = (each >= floor) & (at < vocab)
        place = found + tl.cumsum(is_taken.to(tl.int64), 0) - 1
        is_stored = is_taken & (place < MOST)
        tl.store(some_scores + place, tl.load(scores + at, mask=is_stored, other=0.0), mask=is_stored)
        tl.store(some_probabilities + place, each, mask=is_stored)
        found += tl.sum(is_taken.to(tl.int64), 0)
        mass += tl.sum(tl.where(is_taken, each * _UNIT, 0.0).to(tl.int64), 0)
    tl.debug_barrier()  # what a thread wrote, others read
    is_enough = (mass >= wanted) & (found >= keep) & (found <= MOST)
    read, read_probabilities, count = scores, probabilities, tl.full([], 0, tl.int64) + vocab
    if is_enough:
        read, read_probabilities, count = some_scores, some_probabilities, found
    low, high = tl.full([], -(2**31), tl.int64), tl.full([], 2**31, tl.int64)
    for _ in range(32):
        middle = (low + high) >> 1
        reached, number = _mass(read, read_probabilities, count, middle, BLOCK)
        is_within = (reached >= wanted) & (number >= keep)
        low, high = tl.where(is_within, middle, low), tl.where(is_within, high, middle)
    above, num_above = _mass(read, read_probabilities, count, low + 1, BLOCK)
    whole, num_whole = _mass(read, read_probabilities, count, low, BLOCK)
    each = tl.maximum((whole - above) // tl.maximum(num_whole - num_above, 1), 1)  # those at the border are equals
    room = tl.maximum((wanted - above + each - 1) // each, keep - num_above)
    before = tl.full([], 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(scores + at, mask=at < vocab, other=0.0)
        key = _ordered(x).to(tl.int64)
        is_level = (key == low) & (at < vocab)
        rank = before + tl.cumsum(is_level.to(tl.int64), 0)
        is_cut = ((key < low) | (is_level & (rank > room))) & (x == x)  # a NaN must be seen behind
        tl.store(scores + at, float("-inf"), mask=is_cut & (at < vocab))
        before += tl.sum(is_level.to(tl.int64), 0)
