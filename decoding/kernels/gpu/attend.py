"""Triton kernels over paged keys and values: scatter, attention, and the merging of attention split by keys.

A query's result is a fixed sequence of sums: keys go in blocks of BLOCK, blocks in spans of SPAN whose borders are
multiples of it, spans are merged in order. Whether one program walks all spans or each span has its own changes who
computes a sum and never which. Keys that a query may not see weigh exactly 0 and leave every sum as it was.

T tokens, R rows, P pages a table; M lanes a program, each one query head of one query.
"""

import triton
import triton.language as tl

# Numbers of the batch and where its tables lie differ from tick to tick. Triton would compile a kernel anew for every
# combination of those that are 1, or multiples of 16 (pointers: bytes), while everybody waits; what is read through
# them is single numbers, which gain nothing by it.
_TABLES = ["slots", "tile_rows", "tile_queries", "query_starts", "kv_lengths", "tables"]
_NUMBERS = ["table_row", "num_spans"]


@triton.jit(do_not_specialize_on_alignment=_TABLES)
def scatter(
    key,  # [kv_heads, T, dim]
    value,  # [kv_heads, T, v_dim]
    slots,  # int64 [T]
    key_pages,  # [pages, kv_heads, page_size, dim]
    value_pages,
    key_head,
    key_token,
    value_head,
    value_token,
    dim: tl.constexpr,
    v_dim: tl.constexpr,
    page_size: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
):
    """One token's key and value of one head into their slot. Grid (T, kv_heads)."""
    token, head, kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    slot = tl.load(slots + token)
    place = (slot // page_size * kv_heads + head) * page_size + slot % page_size
    at = tl.arange(0, DIM)
    new = tl.load(key + head * key_head + token * key_token + at, mask=at < dim)
    tl.store(key_pages + place * dim + at, new.to(key_pages.dtype.element_ty), mask=at < dim)
    at = tl.arange(0, V_DIM)
    new = tl.load(value + head * value_head + token * value_token + at, mask=at < v_dim)
    tl.store(value_pages + place * v_dim + at, new.to(value_pages.dtype.element_ty), mask=at < v_dim)


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):
    """A product summed in float32; WIDE: of operands widened first, for the interpreter multiplies no bfloat16."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _merge(best, total, out, other_best, other_total, other_out):
    """Two softmax sums over different keys as one: best score [M], weights [M], weighted values [M, V_DIM]."""
    new = tl.maximum(best, other_best)
    base = tl.where(new == float("-inf"), 0.0, new)
    fade, other_fade = tl.exp(best - base), tl.exp(other_best - base)
    total = total * fade + other_total * other_fade
    return new, total, out * fade[:, None] + other_out * other_fade[:, None]


@triton.jit
def _attend_span(
    query,  # [M, DIM]
    positions,  # [M]
    table,
    key_pages,
    value_pages,
    head,
    kv_heads,
    start,
    end,
    scaling,
    dim: tl.constexpr,
    v_dim: tl.constexpr,
    page_size: tl.constexpr,
    window: tl.constexpr,
    softcap: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Softmax sums over the keys start .. end of one row."""
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, V_DIM], tl.float32)
    at, v_at = tl.arange(0, DIM), tl.arange(0, V_DIM)
    for first in range(start, end, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        is_key = keys < end
        pages = tl.load(table + keys // page_size, mask=is_key, other=0)
        places = (pages * kv_heads + head) * page_size + keys % page_size
        is_read = is_key[None, :] & (at < dim)[:, None]
        key = tl.load(key_pages + places[None, :] * dim + at[:, None], mask=is_read, other=0.0)
        scores = _dot(query, key, WIDE) * scaling
        if softcap > 0:  # a float is no condition to the compiler
            scores = _tanh(scores / softcap) * softcap
        is_seen = is_key[None, :] & (keys[None, :] <= positions[:, None])
        if window:
            is_seen = is_seen & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
        new = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp(scores - base[:, None])
        fade = tl.exp(best - base)
        total = total * fade + tl.sum(weights, 1)
        is_read = is_key[:, None] & (v_at < v_dim)[None, :]
        value = tl.load(value_pages + places[:, None] * v_dim + v_at[None, :], mask=is_read, other=0.0)
        out = out * fade[:, None] + _dot(weights.to(value.dtype), value, WIDE)
        best = new
    return best, total, out


@triton.jit
def _reach(tile, tile_rows, tile_queries, query_starts, kv_lengths, QUERIES: tl.constexpr, window: tl.constexpr):
    """Of a tile: its row, first query in the row, first token and query count of the row, first and last key seen."""
    row, first = tl.load(tile_rows + tile), tl.load(tile_queries + tile)
    start, keys = tl.load(query_starts + row), tl.load(kv_lengths + row)
    count = tl.load(query_starts + row + 1) - start
    end = keys - count + tl.minimum(first + QUERIES, count)
    begin = end * 0
    if window:
        begin = tl.maximum(keys - count + first - window + 1, 0)
    return row, first, start, count, begin, end, keys - count


@triton.jit
def _store(
    out,
    out_token,
    best,
    total,
    result,
    sinks,
    tokens,
    heads,
    is_query,
    v_dim: tl.constexpr,
    V_DIM: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """The sums of M lanes as attended values; a sink takes weight and gives nothing."""
    if HAS_SINKS:
        sink = tl.load(sinks + heads, mask=is_query, other=0.0).to(tl.float32)
        new = tl.maximum(best, sink)
        total = total * tl.exp(best - new) + tl.exp(sink - new)
        result = result * tl.exp(best - new)[:, None]
    result = result / tl.where(total == 0.0, 1.0, total)[:, None]
    at = tl.arange(0, V_DIM)
    places = out + tokens[:, None] * out_token + heads[:, None] * v_dim + at[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=is_query[:, None] & (at < v_dim)[None, :])


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_TABLES)
def attend(
    out,  # [T, heads, v_dim]
    query,  # [heads, T, dim]
    key_pages,
    value_pages,
    tile_rows,  # int64 [tiles]
    tile_queries,  # int64 [tiles]   the tile's first query in its row
    query_starts,  # int64 [R + 1]
    kv_lengths,  # int64 [R]
    tables,  # int64 [R, P]
    sinks,  # [heads]
    bests,  # float32 [tiles, kv_heads, spans, M]
    totals,
    parts,  # float32 [tiles, kv_heads, spans, M, V_DIM]
    query_head,
    query_token,
    out_token,
    table_row,
    scaling,
    dim: tl.constexpr,
    v_dim: tl.constexpr,
    page_size: tl.constexpr,
    window: tl.constexpr,
    softcap: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of M // GROUP queries of one row, all heads of one kv head.

    Grid (tiles, kv_heads, spans): split, a program walks its one span and leaves its sums to `combine`; else (one
    program along spans) it walks them all.
    """
    QUERIES: tl.constexpr = M // GROUP
    tile, head, kv_heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row, first, start, count, begin, end, offset = _reach(
        tile, tile_rows, tile_queries, query_starts, kv_lengths, QUERIES, window
    )
    lanes = tl.arange(0, M)
    queries = first + lanes // GROUP
    is_query = (queries < count) & (lanes < QUERIES * GROUP)
    tokens, heads, positions = start + queries, head * GROUP + lanes % GROUP, offset + queries
    at = tl.arange(0, DIM)
    places = query + heads[:, None] * query_head + tokens[:, None] * query_token + at[None, :]
    asked = tl.load(places, mask=is_query[:, None] & (at < dim)[None, :], other=0.0)
    table = tables + row * table_row
    if IS_SPLIT:
        span = tl.program_id(2)
        span_start, span_end = tl.maximum(span * SPAN, begin // BLOCK * BLOCK), tl.minimum((span + 1) * SPAN, end)
        if span_start < span_end:
            best, total, result = _attend_span(
                asked, positions, table, key_pages, value_pages, head, kv_heads, span_start, span_end, scaling,
                dim, v_dim, page_size, window, softcap, M, DIM, V_DIM, BLOCK, WIDE,
            )  # fmt: skip
            part = ((tile * kv_heads + head) * tl.num_programs(2) + span) * M + lanes
            tl.store(bests + part, best)
            tl.store(totals + part, total)
            tl.store(parts + part[:, None] * V_DIM + tl.arange(0, V_DIM)[None, :], result)
    else:
        best = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        result = tl.zeros([M, V_DIM], tl.float32)
        for border in range(begin // SPAN * SPAN, end, SPAN):
            span_start, span_end = tl.maximum(border, begin // BLOCK * BLOCK), tl.minimum(border + SPAN, end)
            own_best, own_total, own_result = _attend_span(
                asked, positions, table, key_pages, value_pages, head, kv_heads, span_start, span_end, scaling,
                dim, v_dim, page_size, window, softcap, M, DIM, V_DIM, BLOCK, WIDE,
            )  # fmt: skip
            best, total, result = _merge(best, total, result, own_best, own_total, own_result)
        _store(out, out_token, best, total, result, sinks, tokens, heads, is_query, v_dim, V_DIM, HAS_SINKS)


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_TABLES)
def combine(
    out,
    tile_rows,
    tile_queries,
    query_starts,
    kv_lengths,
    sinks,
    bests,
    totals,
    parts,
    out_token,
    num_spans,
    v_dim: tl.constexpr,
    window: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    V_DIM: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Merge the spans of a split tile in order. Grid (tiles, kv_heads)."""
    QUERIES: tl.constexpr = M // GROUP
    tile, head, kv_heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    _, first, start, count, begin, end, _ = _reach(
        tile, tile_rows, tile_queries, query_starts, kv_lengths, QUERIES, window
    )
    lanes = tl.arange(0, M)
    queries = first + lanes // GROUP
    is_query = (queries < count) & (lanes < QUERIES * GROUP)
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, V_DIM], tl.float32)
    for border in range(begin // SPAN * SPAN, end, SPAN):
        part = ((tile * kv_heads + head) * num_spans + border // SPAN) * M + lanes
        own = tl.load(parts + part[:, None] * V_DIM + tl.arange(0, V_DIM)[None, :])
        best, total, result = _merge(best, total, result, tl.load(bests + part), tl.load(totals + part), own)
    heads = head * GROUP + lanes % GROUP
    _store(out, out_token, best, total, result, sinks, start + queries, heads, is_query, v_dim, V_DIM, HAS_SINKS)
