"""Triton kernels of a draw: a row's segments side by side, then each draw by itself. Nothing is sorted.

Weights e^(z - m) are whole numbers of 2^-44, m the best score of their segment: sums of whole numbers round nowhere, so
no order of adding them up matters, and an id without weight is never hit. Ids whose weight is less than that of the
best by 2^44 have none.
"""

import triton
import triton.language as tl

from decoding.kernels.gpu.topk import score_keys

_UNIT = tl.constexpr(float(2**44))
# Where tables lie differs from tick to tick: Triton would compile anew for those at multiples of 16 bytes.
_TABLES = ["peaks", "bests", "totals", "rows", "uniforms", "are_greedy", "ids", "row_peaks"]


@triton.jit
def _weights(x, peak):
    """int64, of the scores of one segment whose best is `peak`; none where a score is NaN."""
    share = tl.exp(x - tl.where(peak == float("-inf"), 0.0, peak))
    return (tl.where(share == share, share, 0.0) * _UNIT).to(tl.int64)


@triton.jit(do_not_specialize_on_alignment=_TABLES[:3])
def weigh(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]   NaN where a score is
    bests,  # int64 [rows, segments]: keys, a larger one is a better score, then a lower id
    totals,  # int64 [rows, segments]
    vocab,
    SEGMENT: tl.constexpr,
):
    """Of one segment of one row: its best, and the sum of its weights. Grid (rows, segments)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    x = tl.load(z + row * vocab + ids, mask=ids < vocab, other=float("-inf"))
    is_number = x == x
    x = tl.where(is_number, x, float("-inf"))
    peak = tl.max(x, 0)
    part = row * tl.num_programs(1) + segment
    tl.store(bests + part, tl.max(score_keys(x, ids, ids < vocab, vocab), 0))
    tl.store(totals + part, tl.sum(_weights(x, peak), 0))
    tl.store(peaks + part, tl.where(tl.min(is_number.to(tl.int32), 0) == 0, float("nan"), peak))


@triton.jit(do_not_specialize_on_alignment=_TABLES)
def pick(
    z,  # float32 [rows, vocab]
    peaks,  # [rows, segments]
    bests,  # int64 [rows, segments]
    totals,  # int64 [rows, segments]
    rows,  # int64 [draws]
    uniforms,  # float64 [draws]
    are_greedy,  # int64 [draws]
    ids,  # int64 [draws]
    row_peaks,  # [rows]
    vocab,
    segments,
    SEGMENT: tl.constexpr,
    SEGMENTS: tl.constexpr,  # a power of two, segments or more
):
    """One draw: the best id, or the first at which the sum of weights is beyond a uniform share of it. Grid (draws)."""
    draw = tl.program_id(0)
    row = tl.load(rows + draw)
    lanes = tl.arange(0, SEGMENTS)
    is_there = lanes < segments
    own = tl.load(peaks + row * segments + lanes, mask=is_there, other=float("-inf"))
    is_number = own == own
    own = tl.where(is_number, own, float("-inf"))
    peak = tl.max(own, 0)
    tl.store(row_peaks + row, tl.where(tl.min(is_number.to(tl.int32), 0) == 0, float("nan"), peak))
    if tl.load(are_greedy + draw) != 0:
        best = tl.max(tl.load(bests + row * segments + lanes, mask=is_there, other=-(2**63)), 0)
        tl.store(ids + draw, vocab - 1 - (best & 0xFFFFFFFF))
    else:
        total = tl.load(totals + row * segments + lanes, mask=is_there, other=0)
        fade = tl.exp(own - tl.where(peak == float("-inf"), 0.0, peak))
        fade = tl.where(fade == fade, fade, 0.0)  # of infinite scores
        faded = (total.to(tl.float64) * fade.to(tl.float64)).to(tl.int64)
        whole = tl.sum(faded, 0)
        target = tl.minimum((tl.load(uniforms + draw) * whole.to(tl.float64)).to(tl.int64), whole - 1)
        segment = tl.minimum(tl.sum((tl.cumsum(faded, 0) <= target).to(tl.int64), 0), segments - 1)
        rest = target - tl.sum(tl.where(lanes < segment, faded, 0), 0)
        its_faded = tl.maximum(tl.sum(tl.where(lanes == segment, faded, 0), 0), 1)
        its_total = tl.sum(tl.where(lanes == segment, total, 0), 0)
        # In units of the segment's own weights, which are finer.
        inner = (rest.to(tl.float64) / its_faded.to(tl.float64) * its_total.to(tl.float64)).to(tl.int64)
        inner = tl.minimum(inner, its_total - 1)
        its_ids = segment * SEGMENT + tl.arange(0, SEGMENT)
        x = tl.load(z + row * vocab + its_ids, mask=its_ids < vocab, other=float("-inf"))
        its_peak = tl.max(tl.where(lanes == segment, own, float("-inf")), 0)
        offset = tl.sum((tl.cumsum(_weights(x, its_peak), 0) <= inner).to(tl.int64), 0)
        tl.store(ids + draw, tl.minimum(segment * SEGMENT + offset, vocab - 1))
