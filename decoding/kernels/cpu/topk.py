"""Online softmax and top-k of rows, read from memory once (Milakov & Gimelshein, arXiv 1805.02867, algorithm 4).

Block by block: m = max, d = d * e^(m_old - m) + sum e^(x - m), and those better than the worst of the k + 1 best so far
join them. A score is x - m - ln d, rounded twice. Several x may round to one score: where that happens among the last
of the best, the row is read again, for the lower id has to come first. A row is one thread's, so no bit of it depends
on the others.
"""

from __future__ import annotations

import math

from numba import carray, float32, float64

from decoding.kernels.cpu.compiled import inner, kernel, record
from decoding.kernels.cpu.sharing import finish, take, wait
from decoding.kernels.cpu.vectors import (
    LANES,
    any_above,
    exp,
    keep_between,
    larger,
    largest,
    load,
    load_one,
    splat,
    store_one,
    store_word,
    total,
    word,
)

BLOCK = 1024  # columns: what the first of three passes loads, the others find in the nearest cache
_AT_ONCE = 4 * LANES
_NOTHING = float32(-math.inf)

TOPK = record(
    x="address",  # [rows, vocab]
    rows="count",
    vocab="count",  # LANES or more
    k="count",  # 0: only the normalisers
    normalises="count",  # 0: a score is x itself
    normalisers="address",  # m and ln d: [rows, 2]
    scores="address",  # [rows, k + 1], the last of a row is scratch
    ids="address",  # int64, alike
    counts="address",  # `sharing.py`: zero before the call
)


@inner
def _peak(x, start, end):
    """The largest of x[start:end], whose length is a multiple of LANES; NaN are passed over."""
    a = b = c = d = splat(_NOTHING)
    at = start
    while at + _AT_ONCE <= end:
        a, b = larger(load(x + 4 * at), a), larger(load(x + 4 * (at + LANES)), b)
        c, d = larger(load(x + 4 * (at + 2 * LANES)), c), larger(load(x + 4 * (at + 3 * LANES)), d)
        at += _AT_ONCE
    while at < end:
        a = larger(load(x + 4 * at), a)
        at += LANES
    return largest(larger(larger(a, b), larger(c, d)))


@inner
def _weights(x, start, end, peak, sums):
    base = splat(peak)
    for at in range(start, end, LANES):
        sums = sums + exp(load(x + 4 * at) - base)
    return sums


@inner
def _join(scores, ids, last, score, token):
    """Insert before the worse, behind the equals; number `last` of the list falls out."""
    at = last
    while at > 0 and load_one(scores + 4 * (at - 1)) < score:
        store_one(scores + 4 * at, load_one(scores + 4 * (at - 1)))
        store_word(ids, at, word(ids, at - 1))
        at -= 1
    store_one(scores + 4 * at, score)
    store_word(ids, at, token)


@inner
def _collect(x, start, end, scores, ids, last):
    """Let those of x[start:end] join that are better than number `last`."""
    worst = load_one(scores + 4 * last)
    for at in range(start, end, LANES):
        if any_above(load(x + 4 * at), splat(worst)):
            for token in range(at, at + LANES):
                score = load_one(x + 4 * token)
                if score > worst:
                    _join(scores, ids, last, score, token)
                    worst = load_one(scores + 4 * last)


@inner
def _raise(peak, new, sums):
    """The sums of weights relative to the new peak."""
    return sums * exp(splat(peak) - splat(new))


@inner
def _scan(x, vocab, k, normalises, scores, ids):
    """m and d of a row; of its best, x in descending order and ids, k + 1 of them."""
    peak, sums = _NOTHING, splat(float32(0))
    whole = vocab // LANES * LANES
    for start in range(0, whole, BLOCK):
        end = min(whole, start + BLOCK)
        own = _peak(x, start, end)
        if k > 0 and own > load_one(scores + 4 * k):
            _collect(x, start, end, scores, ids, k)
        if own > peak:
            sums, peak = _raise(peak, own, sums), own
        if normalises != 0 and peak > _NOTHING:
            sums = _weights(x, start, end, peak, sums)
    if whole < vocab:  # the last LANES columns, those not seen yet
        v = keep_between(load(x + 4 * (vocab - LANES)), LANES - vocab + whole, LANES, splat(_NOTHING))
        own = largest(larger(v, splat(_NOTHING)))
        if own > peak:
            sums, peak = _raise(peak, own, sums), own
        if peak > _NOTHING:
            sums = sums + exp(v - splat(peak))
        if k > 0:
            for token in range(whole, vocab):
                if load_one(x + 4 * token) > load_one(scores + 4 * k):
                    _join(scores, ids, k, load_one(x + 4 * token), token)
    return peak, total(sums)


@inner
def _fill(x, vocab, k, peak, log_total, worst, scores, ids):
    """Behind those that are better than the k-th score: its equals, the lowest ids first."""
    count = 0
    while count < k and load_one(scores + 4 * count) - peak - log_total > worst:
        count += 1
    token = 0
    while count < k and token < vocab:
        if load_one(x + 4 * token) - peak - log_total == worst:
            store_one(scores + 4 * count, load_one(x + 4 * token))
            store_word(ids, count, token)
            count += 1
        token += 1


@inner
def _settle(x, vocab, k, peak, log_total, scores, ids):
    """From x to scores, the lower id first among equals."""
    worst = load_one(scores + 4 * (k - 1)) - peak - log_total
    if not load_one(scores + 4 * k) - peak - log_total < worst:
        _fill(x, vocab, k, peak, log_total, worst, scores, ids)
    for at in range(k):
        score = load_one(scores + 4 * at) - peak - log_total
        store_one(scores + 4 * at, score)
        here, token = at, word(ids, at)
        while here > 0 and load_one(scores + 4 * (here - 1)) == score and word(ids, here - 1) > token:
            store_word(ids, here, word(ids, here - 1))
            here -= 1
        store_word(ids, here, token)


@inner
def _row(a, row):
    x, scores, ids = a.x + 4 * row * a.vocab, a.scores + 4 * row * (a.k + 1), a.ids + 8 * row * (a.k + 1)
    for at in range(a.k + 1):
        store_one(scores + 4 * at, _NOTHING)
        store_word(ids, at, 0)
    peak, weight = _scan(x, a.vocab, a.k, a.normalises, scores, ids)
    log_total = float32(0)
    if a.normalises != 0:
        log_total = float32(math.log(float64(weight)))
    else:
        peak = float32(0)
    store_one(a.normalisers + 8 * row, peak)
    store_one(a.normalisers + 8 * row + 4, log_total)
    if a.k > 0:
        _settle(x, a.vocab, a.k, peak, log_total, scores, ids)


def _topk(pointer):
    a = carray(pointer, 1)[0]
    row = take(a.counts, 1)
    while row < a.rows:
        _row(a, row)
        finish(a.counts, 1)
        row = take(a.counts, 1)
    wait(a.counts, a.rows)


topk = kernel(TOPK)(_topk)
