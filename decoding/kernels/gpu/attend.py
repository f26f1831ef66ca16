"""Triton kernels over paged keys and values: scatter, attention, and the merging of attention split by keys.

A query's result is a fixed sequence of sums: keys go in blocks of BLOCK, blocks in spans, spans are merged in order.
Where spans begin follows from the position alone. Whether one program walks all spans or several share them, and
whether rows that have a span in common are attended together, changes who computes a sum and never which. Keys that a
query may not see weigh exactly 0 and leave every sum as it was.

T tokens, R rows, P pages a table; M lanes a program, each one query head of one query.
"""

import triton
import triton.language as tl

# Numbers of the batch and where its tables lie differ from tick to tick. Triton would compile a kernel anew for every
# combination of those that are 1, or multiples of 16 (pointers: bytes), while everybody waits; what is read through
# them is single numbers, which gain nothing by it.
_TABLES = ["slots", "tile_rows", "tile_queries", "query_starts", "kv_lengths", "tables", "common"]
_NUMBERS = ["table_row", "num_spans", "num_tiles", "num_distances"]

SPANS_A_SIZE = tl.constexpr(16)
NEIGHBOURS = tl.constexpr(32)
"""Rows among which those with common pages are looked for."""
ALL = tl.constexpr(1 << 40)
"""Of two rows whose tables do not differ: so many positions in common."""


@triton.jit
def span_start(span, SPAN: tl.constexpr):
    """The first key of a span. The first 2 * SPANS_A_SIZE hold SPAN keys, every SPANS_A_SIZE behind twice as many."""
    doublings = tl.maximum(span // SPANS_A_SIZE - 1, 0)
    return (span - doublings * SPANS_A_SIZE) * SPAN << doublings


@triton.jit
def span_of(key, SPAN: tl.constexpr):
    """The span that holds a key."""
    span, doublings = key // SPAN, key * 0
    while span >> doublings >= SPANS_A_SIZE * 2:
        doublings += 1
    return (span >> doublings) + doublings * SPANS_A_SIZE


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


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_TABLES)
def find_common(
    common,  # int64 [tiles]
    tile_rows,
    kv_lengths,
    tables,
    table_row,
    page_size: tl.constexpr,
    PAGES: tl.constexpr,
):
    """How many positions the row of each tile has in the same pages as the row of the tile before. Grid (tiles).

    ALL where the tables do not differ as far as the longer of the two reaches.
    """
    tile = tl.program_id(0).to(tl.int64)
    row, before = tl.load(tile_rows + tile), tl.load(tile_rows + tl.maximum(tile - 1, 0))
    keys = tl.maximum(tl.load(kv_lengths + row), tl.load(kv_lengths + before))
    pages = (keys + page_size - 1) // page_size
    same, first = pages, tile * 0
    while first < same:
        at = first + tl.arange(0, PAGES)
        own = tl.load(tables + row * table_row + at, mask=at < pages, other=0)
        other = tl.load(tables + before * table_row + at, mask=at < pages, other=0)
        same = tl.minimum(same, tl.min(tl.where(own == other, pages, at), 0))
        first += PAGES
    found = tl.where(same == pages, ALL, same * page_size)
    tl.store(common + tile, tl.where(tile == 0, 0, found))


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """A product summed in float32; "wide": of operands widened first, for the interpreter multiplies no bfloat16."""
    if PRECISION == "wide":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


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
    biases,  # [M] pointers
    head,
    kv_heads,
    start,
    end,
    scaling,
    num_distances,
    dim: tl.constexpr,
    v_dim: tl.constexpr,
    page_size: tl.constexpr,
    window: tl.constexpr,
    softcap: tl.constexpr,
    M: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Softmax sums over the keys start .. end in the pages of one table."""
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, V_DIM], tl.float32)
    at, v_at = tl.arange(0, DIM), tl.arange(0, V_DIM)
    for first in range(start, end, BLOCK):
        keys = first + tl.arange(0, BLOCK)
        is_key = keys < end
        pages = tl.load(table + keys // page_size, mask=is_key, other=0)
        places = (pages * kv_heads + head) * page_size + keys % page_size
        key = tl.load(key_pages + places[None, :] * dim + at[:, None], mask=(at < dim)[:, None], other=0.0)
        scores = _dot(query, key, PRECISION) * scaling
        if softcap > 0:  # a float is no condition to the compiler
            scores = _tanh(scores / softcap) * softcap
        if HAS_BIAS:
            distances = tl.maximum(positions[:, None] - keys[None, :], 0)
            scores += tl.load(biases[:, None] + tl.minimum(distances, num_distances - 1))
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
        out = out * fade[:, None] + _dot(weights.to(value.dtype), value, PRECISION)
        best = new
    return best, total, out


@triton.jit
def _reach(tile, tile_rows, tile_queries, query_starts, kv_lengths, queries, window: tl.constexpr):
    """Of a tile of one row's queries: the row, its first token, how many of its queries, the first one's position, the
    first and behind the last of the keys that it sees.
    """
    row, first = tl.load(tile_rows + tile), tl.load(tile_queries + tile)
    start, keys = tl.load(query_starts + row), tl.load(kv_lengths + row)
    length = tl.load(query_starts + row + 1) - start
    count, position = tl.minimum(length - first, queries).to(tl.int32), (keys - length + first).to(tl.int32)
    begin = position * 0
    if window:
        begin = tl.maximum(position - window + 1, 0)
    return row, start + first, count, position, begin, position + count


@triton.jit
def _run(common, tile, num_tiles, end):
    """The tiles, one query each, whose rows have all keys before `end` in the same pages as this one's: the first of
    them and behind the last. Not beyond the tile's NEIGHBOURS, so that every tile of a run finds the same one.
    """
    first = tile // NEIGHBOURS * NEIGHBOURS
    at = first + tl.arange(0, NEIGHBOURS)
    is_border = (tl.load(common + at, mask=at < num_tiles, other=0) < end) | (at == first)
    start = tl.max(tl.where(is_border & (at <= tile), at, first), 0)
    return start, tl.min(tl.where(is_border & (at > tile), at, first + NEIGHBOURS), 0)


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
    common,  # int64 [tiles]   of `find_common`
    sinks,  # [heads]
    biases,  # float32 [heads, num_distances]
    bests,  # float32 [tiles, kv_heads, num_spans, KEPT]
    totals,
    parts,  # float32 [tiles, kv_heads, num_spans, KEPT, V_DIM]
    query_head,
    query_token,
    out_token,
    table_row,
    num_tiles,
    num_spans,
    num_distances,
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
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of M // GROUP queries of one row, all heads of one kv head. Grid (tiles, kv_heads, programs).

    Split, the programs of a tile take turns at its spans, the longest first, and leave their sums to `combine`; else
    there is one, which walks them all. SHARES, of split tiles of one query: where rows side by side have a span in
    common, the first of up to M // GROUP of them attends for all.
    """
    QUERIES: tl.constexpr = M // GROUP
    KEPT: tl.constexpr = GROUP if SHARES else QUERIES * GROUP
    tile, head, kv_heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    row, token, count, position, begin, end = _reach(
        tile, tile_rows, tile_queries, query_starts, kv_lengths, QUERIES, window
    )
    lanes = tl.arange(0, M)
    queries, heads, is_lane = lanes // GROUP, head * GROUP + lanes % GROUP, lanes < QUERIES * GROUP
    is_query = is_lane & (queries < count)
    tokens, positions = token + queries, position + queries
    if SHARES:
        neighbours = tl.minimum(tile + queries, num_tiles - 1)
        rows = tl.load(tile_rows + neighbours)
        tokens, positions = tl.load(query_starts + rows), tl.load(kv_lengths + rows).to(tl.int32) - 1
        end = tl.max(positions, 0) + 1
        if window:
            begin = tl.maximum(tl.min(positions, 0) - window + 1, 0)
        is_query = is_lane & (tile + queries < num_tiles)
    at = tl.arange(0, DIM)
    places = query + heads[:, None] * query_head + tokens[:, None] * query_token + at[None, :]
    asked = tl.load(places, mask=is_query[:, None] & (at < dim)[None, :], other=0.0)
    table = tables + row * table_row
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, V_DIM], tl.float32)
    first_span, last_span = span_of(begin, SPAN), span_of(end - 1, SPAN)
    for step in range(tl.program_id(2), last_span - first_span + 1, tl.num_programs(2)):
        span = last_span - step if IS_SPLIT else first_span + step
        start, stop = span_start(span, SPAN), span_start(span + 1, SPAN)
        if SHARES:
            run, run_end = _run(common, tile, num_tiles, stop)
            count = tl.where((tile - run) % QUERIES == 0, run_end - tile, 0).to(tl.int32)
            is_query = is_lane & (queries < count)
            end = tl.max(tl.where(is_query, positions + 1, 0), 0)
            if window:
                begin = tl.maximum(tl.min(tl.where(is_query, positions, end), 0) - window + 1, 0)
        start, stop = tl.maximum(start, begin // BLOCK * BLOCK), tl.minimum(stop, end)
        if start < stop:
            own_best, own_total, own_result = _attend_span(
                asked, positions, table, key_pages, value_pages, biases + heads * num_distances, head, kv_heads,
                start, stop, scaling, num_distances, dim, v_dim, page_size, window, softcap, M, DIM, V_DIM, BLOCK,
                HAS_BIAS, PRECISION,
            )  # fmt: skip
            if IS_SPLIT:
                if SHARES:
                    part = (((tile + queries) * kv_heads + head) * num_spans + span) * KEPT + lanes % GROUP
                else:
                    part = ((tile * kv_heads + head) * num_spans + span) * KEPT + lanes
                tl.store(bests + part, own_best, mask=is_query)
                tl.store(totals + part, own_total, mask=is_query)
                v_at = tl.arange(0, V_DIM)
                tl.store(parts + part[:, None] * V_DIM + v_at[None, :], own_result, mask=is_query[:, None])
            else:
                best, total, result = _merge(best, total, result, own_best, own_total, own_result)
    if not IS_SPLIT:
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
    LANES: tl.constexpr,  # a power of two, GROUP or more
    V_DIM: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Merge the spans of one query of a split tile in order. Grid (tiles, kv_heads, queries a tile)."""
    tile, head, query = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    _, token, count, position, begin, _ = _reach(
        tile, tile_rows, tile_queries, query_starts, kv_lengths, tl.num_programs(2), window
    )
    if query < count:
        position += query
        if window:
            begin = tl.maximum(position - window + 1, 0)
        lanes, v_at = tl.arange(0, LANES), tl.arange(0, V_DIM)
        is_head = lanes < GROUP
        best = tl.full([LANES], float("-inf"), tl.float32)
        total = tl.zeros([LANES], tl.float32)
        result = tl.zeros([LANES, V_DIM], tl.float32)
        kept = (tile * tl.num_programs(1) + head) * num_spans
        for span in tl.range(span_of(begin, SPAN), span_of(position, SPAN) + 1, num_stages=4):
            part = ((kept + span) * tl.num_programs(2) + query) * GROUP + lanes
            own_best = tl.load(bests + part, mask=is_head, other=float("-inf"))
            own_total = tl.load(totals + part, mask=is_head, other=0.0)
            own = tl.load(parts + part[:, None] * V_DIM + v_at[None, :], mask=is_head[:, None], other=0.0)
            best, total, result = _merge(best, total, result, own_best, own_total, own)
        tokens, heads = token + query + lanes * 0, head * GROUP + lanes
        _store(out, out_token, best, total, result, sinks, tokens, heads, is_head, v_dim, V_DIM, HAS_SINKS)
