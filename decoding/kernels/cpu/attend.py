"""Attention over paged keys and values: every query by itself, its keys in blocks whose borders are fixed positions.

A page holds keys as [kv_heads, head_dim, 16] (a panel: sixteen scores are one product) and values as [kv_heads, 16,
v_width]. Within a block: scores, their maximum, e^(score - maximum), values added up key by key; from block to block
the running sums are rescaled (the online softmax of FlashAttention, arXiv:2205.14135). Keys that a query may not see
add exact zeros, so queries of one row can share a tile and a query's result is the same in any.
"""

from __future__ import annotations

from numba import carray, float32

from decoding.kernels.cpu.compiled import address_of, call_at, inner, kernel, kernel_of_counts, reader, record
from decoding.kernels.cpu.products import MAX_ROWS, make_product, products
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.tile import PANEL, Format
from decoding.kernels.cpu.vectors import (
    LANES,
    exp,
    keep_between,
    lane,
    larger,
    largest,
    load,
    load_one,
    splat,
    store,
    store_one,
    total,
    word,
)

PAGE = PANEL  # positions
BLOCK = 128  # keys
TILE_ROWS = 24  # queries times heads of a group
INFINITY = float("inf")

ATTENTION = record(
    layer="count",
    query="address",  # [T, heads, head_dim] by strides
    key="address",  # [T, kv_heads, head_dim] by strides
    value="address",  # [T, kv_heads, v_head_dim] by strides
    out="address",  # [T, heads, v_head_dim]
    query_token="count",  # strides in bytes
    query_head="count",
    key_token="count",
    key_head="count",
    value_token="count",
    value_head="count",
    batch="address",  # BATCH
    key_pages="address",  # [pages, kv_heads, head_dim, PAGE]
    value_pages="address",  # [pages, kv_heads, PAGE, v_width]
    heads="count",
    kv_heads="count",
    head_dim="count",
    v_head_dim="count",
    v_width="count",  # v_head_dim up to a multiple of PANEL
    window="count",  # keys a query sees at most
    sinks="address",  # [heads], or 0
    scaling="float",
    softcap="float",  # 0: none
    attend="address",  # `attend`
)

BATCH = record(
    tokens="count",
    slots="address",  # int64 [T]
    pieces="address",  # int64 [P, 4]: page table, first token, tokens, first position
    num_pieces="count",
    tables="address",  # int64 [rows, table_width]
    table_width="count",
    scratch="address",  # one room for each thread
    room="count",  # bytes of it
    counts="address",  # of every layer's STEPS steps, zero before the forward
)
STEPS = 17

_scores = products[Format.FLOAT32]
_weighted = make_product(Format.FLOAT32, accumulates=True)


def room_bytes(heads: int, kv_heads: int, head_dim: int, v_width: int) -> int:
    """What one thread needs: queries, scores, sums, and two numbers for each row of a tile."""
    rows = max(TILE_ROWS, heads // kv_heads)
    return 4 * rows * (head_dim + BLOCK + v_width + 2) + 64


@inner
def write(a, slots, token):
    """Put the token's keys and values into its slot."""
    slot = word(slots, token)
    page, offset = slot // PAGE, slot % PAGE
    for head in range(a.kv_heads):
        source = a.key + token * a.key_token + head * a.key_head
        target = a.key_pages + 4 * ((page * a.kv_heads + head) * a.head_dim * PAGE + offset)
        for d in range(a.head_dim):
            store_one(target + 4 * PAGE * d, load_one(source + 4 * d))
        source = a.value + token * a.value_token + head * a.value_head
        target = a.value_pages + 4 * ((page * a.kv_heads + head) * PAGE + offset) * a.v_width
        for d in range(a.v_head_dim):
            store_one(target + 4 * d, load_one(source + 4 * d))


@inner
def _mask(scores, keys, first, end, scaling, softcap):
    """Scale and cap one row's scores of a block, hide keys outside first <= key < end; returns the largest."""
    hidden = splat(float32(-INFINITY))
    best = hidden
    for key in range(0, keys, LANES):
        v = load(scores + 4 * key)
        if softcap > 0:
            # tanh(x) = 1 - 2 / (e^2x + 1)
            e = exp(v * splat(float32(2 * scaling / softcap)))
            v = splat(float32(softcap)) * (splat(float32(1)) - splat(float32(2)) / (e + splat(float32(1))))
        else:
            v = v * splat(float32(scaling))
        v = keep_between(v, first - key, end - key, hidden)
        store(scores + 4 * key, v)
        best = larger(v, best)
    return largest(best)


@inner
def _exponentiate(scores, keys, peak):
    """scores = e^(scores - peak); returns their sum."""
    height, low, high = splat(peak), splat(float32(0)), splat(float32(0))
    for key in range(0, keys, PANEL):  # in PANEL parts whatever the number of lanes
        v = exp(load(scores + 4 * key) - height)
        store(scores + 4 * key, v)
        low = low + v
        if LANES < PANEL:
            v = exp(load(scores + 4 * (key + LANES)) - height)
            store(scores + 4 * (key + LANES), v)
            high = high + v
    return total(low + high)


@inner
def _fill(address, count, number):
    for at in range(0, 4 * count, 4):
        store_one(address + at, number)


@inner
def _exp_one(x):
    return lane(exp(splat(x)), 0)


@inner
def _soften(a, scores, sums, state, keys, first, end):
    """One row's weights of one block, and its running state: the peak so far and the sum of weights."""
    if first >= end:
        _fill(scores, keys, float32(0))
        return
    before = load_one(state)
    peak = max(before, _mask(scores, keys, first, end, a.scaling, a.softcap))
    shrink = _exp_one(before - peak)
    store_one(state, peak)
    store_one(state + 4, load_one(state + 4) * shrink + _exponentiate(scores, keys, peak))
    if shrink != float32(1):
        for at in range(0, 4 * a.v_width, 4 * LANES):
            store(sums + at, load(sums + at) * splat(shrink))


@inner
def _finish(a, sums, state, sink, has_sink, out):
    """out = sums / weights, a sink counting as one more key."""
    weights, shrink = load_one(state + 4), float32(1)
    if has_sink:
        peak = max(load_one(state), sink)
        shrink = _exp_one(load_one(state) - peak)
        weights = weights * shrink + _exp_one(sink - peak)
    scale = shrink / weights
    for d in range(a.v_head_dim):
        store_one(out + 4 * d, load_one(sums + 4 * d) * scale)


@inner
def _attend_block(a, table, kv_head, room, rows, group, position, start, end):
    """One block of keys [start, end) for every row of the tile."""
    queries, scores = room, room + 4 * rows * a.head_dim
    sums = scores + 4 * rows * BLOCK
    state = sums + 4 * rows * a.v_width
    for key in range(start, end, PAGE):
        page = a.key_pages + 4 * (word(table, key // PAGE) * a.kv_heads + kv_head) * a.head_dim * PAGE
        for row in range(0, rows, MAX_ROWS):
            some, to = min(MAX_ROWS, rows - row), scores + 4 * (row * BLOCK + key - start)
            at = queries + 4 * row * a.head_dim
            _scores(some, 1, at, 4 * a.head_dim, page, 4 * PAGE, 0, a.head_dim, to, 4 * BLOCK)
    keys = (end - start + PANEL - 1) // PANEL * PANEL
    for row in range(rows):
        own = position + row // group
        first = max(0, own - a.window + 1 - start)
        last = min(own + 1, end) - start
        _soften(a, scores + 4 * row * BLOCK, sums + 4 * row * a.v_width, state + 8 * row, keys, first, last)
    for key in range(start, end, PAGE):
        page = a.value_pages + 4 * (word(table, key // PAGE) * a.kv_heads + kv_head) * PAGE * a.v_width
        for row in range(0, rows, MAX_ROWS):
            some, to = min(MAX_ROWS, rows - row), sums + 4 * row * a.v_width
            at = scores + 4 * (row * BLOCK + key - start)
            depth = min(PAGE, end - key)
            _weighted(some, a.v_width // PANEL, at, 4 * BLOCK, page, 4 * a.v_width, 4 * PANEL, depth, to, 4 * a.v_width)


@inner
def _attend_piece(a, table, kv_head, room, token, tokens, position):
    """Consecutive queries of one row, all heads of one group."""
    group = a.heads // a.kv_heads
    rows = tokens * group
    for row in range(rows):
        head = kv_head * group + row % group
        source = a.query + (token + row // group) * a.query_token + head * a.query_head
        for d in range(a.head_dim):
            store_one(room + 4 * (row * a.head_dim + d), load_one(source + 4 * d))
    sums = room + 4 * rows * (a.head_dim + BLOCK)
    state = sums + 4 * rows * a.v_width
    _fill(sums, rows * a.v_width, float32(0))
    for row in range(rows):
        store_one(state + 8 * row, float32(-INFINITY))
        store_one(state + 8 * row + 4, float32(0))
    end = position + tokens
    for start in range(max(0, position - a.window + 1) // BLOCK * BLOCK, end, BLOCK):
        _attend_block(a, table, kv_head, room, rows, group, position, start, min(end, start + BLOCK))
    for row in range(rows):
        head = kv_head * group + row % group
        sink = load_one(a.sinks + 4 * head) if a.sinks != 0 else float32(0)
        out = a.out + 4 * ((token + row // group) * a.heads + head) * a.v_head_dim
        _finish(a, sums + 4 * row * a.v_width, state + 8 * row, sink, a.sinks != 0, out)


@inner
def step(batch, layer, number):
    """The counts of one step of a layer."""
    return batch.counts + (layer * STEPS + number) * COUNTS_BYTES


def _attend(attention_at, batch_at, counts, thread):
    """One thread's share: takes pieces, head group by head group, until none are left and all are done."""
    a, batch = carray(_attention_at(attention_at), 1)[0], carray(_batch_at(batch_at), 1)[0]
    room = batch.scratch + thread * batch.room
    items = batch.num_pieces * a.kv_heads
    item = take(counts, 1)
    while item < items:
        piece = batch.pieces + 32 * (item // a.kv_heads)
        table = batch.tables + 8 * word(piece, 0) * batch.table_width
        _attend_piece(a, table, item % a.kv_heads, room, word(piece, 1), word(piece, 2), word(piece, 3))
        finish(counts, 1)
        item = take(counts, 1)
    wait(counts, items)


@inner
def _write_all(a, batch, counts):
    token = take(counts, 1)
    while token < batch.tokens:
        write(a, batch.slots, token)
        finish(counts, 1)
        token = take(counts, 1)
    wait(counts, batch.tokens)


def _attention(pointer):
    a = carray(pointer, 1)[0]
    batch = carray(_batch_at(a.batch), 1)[0]
    thread = take(step(batch, a.layer, 0), 1)
    _write_all(a, batch, step(batch, a.layer, 1))
    call_at(a.attend, (address_of(pointer), a.batch, step(batch, a.layer, 2), thread))


_attention_at, _batch_at = reader(ATTENTION), reader(BATCH)
attend = kernel_of_counts(4)(_attend)
attention = kernel(ATTENTION)(_attention)
