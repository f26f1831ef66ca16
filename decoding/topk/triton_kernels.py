"""Triton kernels of log-softmax and top-k: segments of rows side by side, then each row's segments together.

Softmax sums merge as in the online softmax (arXiv 1805.02867), a row's segments always the same ones and in one fixed
tree. Candidates are keys: a larger one is a better score, then a lower id. Segments rank z, where the row's sum is not
known yet; several z may round to one score, so a segment may hide an equal of the k-th best. Only such a row is read
again.
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-(2**63))


@triton.jit
def _keys(scores, ids, is_there, vocab):
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
def _rank(z, peak, log_total, ids, is_there, vocab):
    """Keys of final scores."""
    return _keys(z - peak - log_total, ids, is_there, vocab)


@triton.jit
def scan(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]
    totals,  # [rows, segments]
    candidates,  # int64 [rows, segments, K]
    vocab,
    SEGMENT: tl.constexpr,
    K: tl.constexpr,  # 0: only the sums
):
    """Of one segment of one row: m, sum e^(z - m), and its K best. Grid (rows, segments)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    x = tl.load(z + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
    peak = tl.max(x, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    part = row * tl.num_programs(1) + segment
    tl.store(peaks + part, peak)
    tl.store(totals + part, tl.sum(tl.exp(x - base), 0))
    if K > 0:
        best = tl.topk(_keys(x, ids, ids < vocab, vocab), K)
        tl.store(candidates + part * K + tl.arange(0, K), best)


@triton.jit(do_not_specialize=["k", "normalises"])
def settle(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]
    totals,  # [rows, segments]
    candidates,  # int64 [rows, segments, K]
    normalisers,  # m and ln d: [rows, 2]
    best_scores,  # [rows, k]
    best_ids,  # int64 [rows, k]
    vocab,
    segments,
    k,
    normalises,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,  # a power of two, segments or more
    K: tl.constexpr,  # more than k
):
    """A row's sum and its k best. Grid (rows)."""
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
    if K > 0:
        lanes = tl.arange(0, SEGMENTS * K)
        keys = tl.load(candidates + row * segments * K + lanes, mask=lanes < segments * K, other=_LOWEST)
        is_there = keys != _LOWEST
        keys = _rank(_scores(keys), peak, log_total, _ids(keys, vocab), is_there, vocab)
        best = tl.topk(keys, K)
        places = tl.arange(0, K)
        # Each segment's last candidate: the worst that it shows.
        shown = tl.load(candidates + (row * segments + at) * K + K - 1, mask=at < segments, other=_LOWEST)
        worst = tl.max(tl.where(places == k - 1, best, _LOWEST), 0) >> 32
        shown_rank = _rank(_scores(shown), peak, log_total, _ids(shown, vocab), shown != _LOWEST, vocab)
        if tl.max(((shown != _LOWEST) & (shown_rank >> 32 == worst)).to(tl.int32), 0) > 0:
            best = tl.full([K], _LOWEST, tl.int64)
            for start in range(0, vocab, SEGMENT):
                ids = start + tl.arange(0, SEGMENT)
                x = tl.load(z + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
                more = tl.topk(_rank(x, peak, log_total, ids, ids < vocab, vocab), K)
                best = tl.topk(tl.reshape(tl.join(best, more), [2 * K]), K)
        tl.store(best_scores + row * k + places, _scores(best), mask=places < k)
        tl.store(best_ids + row * k + places, _ids(best, vocab), mask=places < k)
