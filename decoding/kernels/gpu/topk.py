"""Triton kernels of log-softmax and top-k: segments of rows side by side, then each row's segments together.

Softmax sums merge as in the online softmax (arXiv 1805.02867), a row's segments always the same ones and in one fixed
tree. Candidates are keys: a larger one is a better score, then a lower id. Segments rank z, where the row's sum is not
known yet; several z may round to one score, so a segment may hide an equal of the k-th best. Such a row, a rare one, is
read again.
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-(2**63))
_ASKED = ["kept", "normalises"]  # differ from tick to tick: Triton would compile anew for 1 and for multiples of 16


@triton.jit
def score_keys(scores, ids, is_there, vocab):
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)  # a negative zero is a zero
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)  # floats in the order of integers
    return tl.where(is_there, (ordered << 32) + (vocab - 1 - ids), _LOWEST)


@triton.jit
def _scores(keys):
    ordered = (keys >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def _ids(keys, vocab):
    return vocab - 1 - (keys & 0xFFFFFFFF)


@triton.jit
def _take(keys, places, count):
    """Store the `count` best keys at `places`, best first; returns the last of them."""
    best = tl.max(keys, 0)
    for at in range(count):
        best = tl.max(keys, 0)
        tl.store(places + at, best)
        keys = tl.where(keys == best, _LOWEST, keys)
    return best


@triton.jit(do_not_specialize=_ASKED)
def scan(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]
    totals,  # [rows, segments]
    candidates,  # int64 [rows, segments, kept]
    vocab,
    kept,  # 0: only the sums
    SEGMENT: tl.constexpr,
):
    """Of one segment of one row: m, sum e^(z - m), and its best. Grid (rows, segments)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    x = tl.load(z + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
    peak = tl.max(x, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    part = row * tl.num_programs(1) + segment
    tl.store(peaks + part, peak)
    tl.store(totals + part, tl.sum(tl.exp(x - base), 0))
    if kept > 0:
        _take(score_keys(x, ids, ids < vocab, vocab), candidates + part * kept, kept)


@triton.jit(do_not_specialize=_ASKED)
def settle(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]
    totals,  # [rows, segments]
    candidates,  # int64 [rows, segments, kept]
    normalisers,  # m and ln d: [rows, 2]
    best,  # int64 [rows, kept - 1]: keys
    vocab,
    segments,
    kept,  # one more than are asked for, or 0
    normalises,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,  # a power of two, segments or more
    LANES: tl.constexpr,  # a power of two, segments * kept or more
):
    """A row's sum and its best. Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SEGMENTS)
    own = tl.load(peaks + row * segments + at, mask=at < segments, other=float("-inf"))
    weight = tl.load(totals + row * segments + at, mask=at < segments, other=0.0)
    peak = tl.max(own, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    log_total = tl.log(tl.sum(weight * tl.exp(own - base), 0))
    peak = tl.where(normalises != 0, peak, 0.0)
    log_total = tl.where(normalises != 0, log_total, 0.0)
    tl.store(normalisers + 2 * row, peak)
    tl.store(normalisers + 2 * row + 1, log_total)
    if kept > 0:
        lanes = tl.arange(0, LANES)
        keys = tl.load(candidates + row * segments * kept + lanes, mask=lanes < segments * kept, other=_LOWEST)
        is_there = keys != _LOWEST
        ranks = score_keys(_scores(keys) - peak - log_total, _ids(keys, vocab), is_there, vocab)
        places = best + row * (kept - 1)
        last = _take(ranks, places, kept - 1)
        # A segment whose worst candidate is an equal of the last may have more of them, behind it or before by id.
        hides = is_there & (lanes % kept == kept - 1) & (ranks >> 32 == last >> 32)
        if tl.max(hides.to(tl.int32), 0) > 0:
            _read_again(z + row * vocab, places, kept - 1, peak, log_total, vocab, SEGMENT)


@triton.jit
def _read_again(z, places, count, peak, log_total, vocab, SEGMENT: tl.constexpr):
    """The best keys of a whole row, one reading for each."""
    before = tl.full([], 2**63 - 1, tl.int64)
    for at in range(count):
        best = tl.full([], -(2**63), tl.int64)
        for start in range(0, vocab, SEGMENT):
            ids = start + tl.arange(0, SEGMENT)
            x = tl.load(z + ids, mask=ids < vocab, other=float("-inf"))
            keys = score_keys(x - peak - log_total, ids, ids < vocab, vocab)
            best = tl.maximum(best, tl.max(tl.where(keys < before, keys, _LOWEST), 0))
        tl.store(places + at, best)
        before = best
