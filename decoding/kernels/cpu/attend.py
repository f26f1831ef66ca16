"""Attention over paged keys and values: every query by itself, its keys in blocks whose borders are fixed positions.

Within a block: scores, their maximum, weights (`softmax.py`), values added up key by key; from block to block the
running sums are rescaled. Keys that a query may not see add exact zeros, so queries can share a tile and a query's
result is the same in any. A tile has queries of one row or of several, and where these have a page in common, it is
read once for all of them.
"""

from __future__ import annotations

from typing import Any

from numba import carray, float32

from decoding.kernels.cpu.compiled import address_of, call_at, inner, kernel, kernel_of_counts, reader, record
from decoding.kernels.cpu.page_products import make_scores, make_sums
from decoding.kernels.cpu.parts import PART_BYTES, end_of, first_key, keys_of, page_at, sharing, tokens_of
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.softmax import STATE_BYTES, begin, fill, make_softmax
from decoding.kernels.cpu.storage import PAGE, STORAGES
from decoding.kernels.cpu.tile import LINE, PANEL, Format
from decoding.kernels.cpu.vectors import load_one, word

BLOCK = 128  # keys
TILE_ROWS = 48  # queries times heads of a group
CHUNKS = 32  # at least, in which threads take many items: each time costs them about as much as a page of keys

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
    key_pages="address",  # [pages, kv_heads, a page of keys]: `storage.py`
    value_pages="address",  # [pages, kv_heads, a page of values]
    heads="count",
    kv_heads="count",
    head_dim="count",
    v_head_dim="count",
    v_width="count",  # v_head_dim up to a multiple of PANEL
    window="count",  # keys a query sees at most
    sinks="address",  # [heads], or 0
    scaling="float",
    softcap="float",  # 0: none
    write="address",  # one of `writes`
    attend="address",  # one of `attends`
)

BATCH = record(
    tokens="count",
    slots="address",  # int64 [T]
    pieces="address",  # int64 [P, 2]: first part, parts
    num_pieces="count",
    parts="address",  # int64 [N, 4]: `parts.py`
    tables="address",  # int64 [rows, table_width]
    table_width="count",
    scratch="address",  # one room for each thread
    room="count",  # bytes of it
    counts="address",  # of every layer's STEPS steps, zero before the forward
    keeps_heads="count",  # 1: a thread attends with all heads of a piece, whose keys lie side by side
)
STEPS = 17


def room_bytes(heads: int, kv_heads: int, head_dim: int, v_width: int) -> int:
    """What one thread needs: queries, scores, sums, and two numbers for each row of a tile."""
    rows = max(TILE_ROWS, heads // kv_heads)
    return rows * (4 * (head_dim + PANEL) + 4 * BLOCK + 4 * v_width + STATE_BYTES) + LINE


def make_attend(form: Format) -> Any:
    """attend(attention, batch, counts, thread): one thread's share, back when all are done."""
    softmax, copy_query = make_softmax(form), STORAGES[form].copy_query
    soften, settle = softmax.soften, softmax.finish
    scores_of, add_values = make_scores(form), make_sums(form)
    depth = form.depth
    size = 4 // depth  # of a number

    @inner
    def turns_of(a):
        return (a.head_dim + depth - 1) // depth

    @inner
    def key_bytes(a):
        return 4 * PAGE * turns_of(a)

    @inner
    def value_bytes(a):
        return size * PAGE * a.v_width

    @inner
    def copy_queries(a, part, parts, first_head, kv_heads, room, lda):
        group = a.heads // a.kv_heads
        for kv_head in range(first_head, first_head + kv_heads):
            for each in range(parts):
                token = word(part + PART_BYTES * each, 1)
                for query in range(token, token + word(part + PART_BYTES * each, 2)):
                    source = a.query + query * a.query_token + kv_head * group * a.query_head
                    for _ in range(group):
                        copy_query(source, a.head_dim, room)
                        source += a.query_head
                        room += lda

    @inner
    def soften_block(a, part, parts, kv_heads, scores, sums, state, start, keys):
        group = a.heads // a.kv_heads
        for _ in range(kv_heads):
            for each in range(parts):
                position = word(part + PART_BYTES * each, 3)
                for own in range(position, position + word(part + PART_BYTES * each, 2)):
                    first, end = max(0, own - a.window + 1 - start), min(own + 1 - start, keys)
                    for _ in range(group):
                        soften(scores, sums, a.v_width, state, keys, first, end, a.scaling, a.softcap)
                        scores += 4 * BLOCK
                        sums += 4 * a.v_width
                        state += STATE_BYTES

    @inner
    def key_page(a, page, kv_head):
        return a.key_pages + (page * a.kv_heads + kv_head) * key_bytes(a)

    @inner
    def value_page(a, page, kv_head):
        return a.value_pages + (page * a.kv_heads + kv_head) * value_bytes(a)

    @inner
    def following_page(a, batch, part, key, item, kv_heads):
        """The page of keys that is read a block later, of the part's own or, behind its last, of the item's part; and
        its first head. -1: none.
        """
        if key + BLOCK < keys_of(part):
            return page_at(batch, part, key + BLOCK), -1
        if item < 0:
            return -1, -1
        sets = a.kv_heads // kv_heads
        other = batch.parts + PART_BYTES * word(batch.pieces + 16 * (item // sets), 0)
        start = first_key(other, 1, a.window) // BLOCK * BLOCK
        return page_at(batch, other, start + key % BLOCK), item % sets * kv_heads

    @inner
    def score_block(a, batch, part, parts, first_head, kv_heads, rows, room, lda, start, end):
        """Scores of one block of keys [start, end), behind the queries in the room, for every row of the tile."""
        scores = room + kv_heads * rows * lda
        for key in range(start, end, 2 * PAGE):
            each, row = 0, 0
            while each < parts:
                own = part + PART_BYTES * each
                count = sharing(batch, own, parts - each, key)
                some = (a.heads // a.kv_heads) * tokens_of(own, max(count, 1))
                if count > 0:
                    page, second = page_at(batch, own, key), page_at(batch, own, key + PAGE)
                    second = second if second >= 0 else page  # whose scores are not looked at
                    for head in range(first_head, first_head + kv_heads):
                        at = (head - first_head) * rows + row
                        queries, to = room + at * lda, scores + 4 * (at * BLOCK + key - start)
                        keys, others = key_page(a, page, head), key_page(a, second, head)
                        values, more = value_page(a, page, head), value_page(a, second, head)
                        scores_of(some, queries, lda, keys, others, turns_of(a), to, 4 * BLOCK, values, more)
                row += some
                each += max(count, 1)

    @inner
    def add_block(a, batch, part, parts, first_head, kv_heads, rows, scores, sums, start, end, item):
        """sums += weights times values; item: what comes next."""
        for key in range(start, end, PAGE):
            each, row = 0, 0
            while each < parts:
                own = part + PART_BYTES * each
                count = sharing(batch, own, parts - each, key // (2 * PAGE) * (2 * PAGE))
                some = (a.heads // a.kv_heads) * tokens_of(own, max(count, 1))
                page = page_at(batch, own, key)
                if count > 0 and page >= 0:
                    taken = (min(PAGE, end_of(own, count) - key) + depth - 1) // depth
                    next_page, next_head = following_page(a, batch, own, key, item, kv_heads)
                    next_head = next_head if next_head >= 0 else first_head
                    for head in range(kv_heads):
                        values = value_page(a, page, first_head + head)
                        ahead = key_page(a, next_page, next_head + head) if next_page >= 0 else values
                        at = scores + 4 * (head * rows + row) * BLOCK + size * (key - start)
                        to = sums + 4 * (head * rows + row) * a.v_width
                        add_values(some, a.v_width // PANEL, at, 4 * BLOCK, values, taken, to, 4 * a.v_width, ahead)
                row += some
                each += max(count, 1)

    @inner
    def write_out(a, part, parts, first_head, kv_heads, sums, state):
        group = a.heads // a.kv_heads
        for kv_head in range(first_head, first_head + kv_heads):
            for each in range(parts):
                token = word(part + PART_BYTES * each, 1)
                for query in range(token, token + word(part + PART_BYTES * each, 2)):
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        sink = load_one(a.sinks + 4 * head) if a.sinks != 0 else float32(0)
                        out = a.out + 4 * (query * a.heads + head) * a.v_head_dim
                        settle(sums, a.v_head_dim, state, sink, a.sinks != 0, out)
                        sums += 4 * a.v_width
                        state += STATE_BYTES

    @inner
    def attend_piece(a, batch, part, parts, first_head, kv_heads, room, following):
        """All heads of some groups."""
        rows = tokens_of(part, parts) * (a.heads // a.kv_heads)
        lda = size * ((a.head_dim + PANEL - 1) // PANEL * PANEL)
        scores = room + kv_heads * rows * lda
        sums = scores + 4 * kv_heads * rows * BLOCK
        state = sums + 4 * kv_heads * rows * a.v_width
        copy_queries(a, part, parts, first_head, kv_heads, room, lda)
        fill(sums, 4 * kv_heads * rows * a.v_width, float32(0))
        for row in range(kv_heads * rows):
            begin(state + STATE_BYTES * row)
        last = end_of(part, parts)
        for start in range(first_key(part, parts, a.window) // BLOCK * BLOCK, last, BLOCK):
            end = min(last, start + BLOCK)
            score_block(a, batch, part, parts, first_head, kv_heads, rows, room, lda, start, end)
            keys = (end - start + PANEL - 1) // PANEL * PANEL
            soften_block(a, part, parts, kv_heads, scores, sums, state, start, keys)
            add_block(a, batch, part, parts, first_head, kv_heads, rows, scores, sums, start, end, following)
        write_out(a, part, parts, first_head, kv_heads, sums, state)

    def attend(attention_at, batch_at, counts, thread):
        a, batch = carray(_attention_at(attention_at), 1)[0], carray(_batch_at(batch_at), 1)[0]
        room = batch.scratch + thread * batch.room
        kv_heads = a.kv_heads if batch.keeps_heads != 0 else 1
        sets = a.kv_heads // kv_heads
        items = batch.num_pieces * sets
        chunk = max(1, items // CHUNKS)
        first = take(counts, chunk)
        while first < items:
            begun, end = first, min(items, first + chunk)
            for item in range(begun, end):
                following = item + 1
                if following == end:  # taken before this one is done, so that its keys are on their way by then
                    first = take(counts, chunk)
                    following = first if first < items else -1
                piece = batch.pieces + 16 * (item // sets)
                part = batch.parts + PART_BYTES * word(piece, 0)
                attend_piece(a, batch, part, word(piece, 1), item % sets * kv_heads, kv_heads, room, following)
            finish(counts, end - begun)
        wait(counts, items)

    return attend


def make_write(form: Format) -> Any:
    """write(attention, batch, token, thread): put the token's keys and values into its slot."""
    write_token = STORAGES[form].write

    def write(attention_at, batch_at, token, thread):
        a, batch = carray(_attention_at(attention_at), 1)[0], carray(_batch_at(batch_at), 1)[0]
        write_token(a, batch.slots, batch.tokens, token, batch.scratch + thread * batch.room)

    return write


@inner
def step(batch, layer, number):
    """The counts of one step of a layer."""
    return batch.counts + (layer * STEPS + number) * COUNTS_BYTES


@inner
def _write_all(a, attention_at, batch, counts, thread):
    token = take(counts, 1)
    while token < batch.tokens:
        call_at(a.write, (attention_at, a.batch, token, thread))
        finish(counts, 1)
        token = take(counts, 1)
    wait(counts, batch.tokens)


def _attention(pointer):
    a = carray(pointer, 1)[0]
    batch = carray(_batch_at(a.batch), 1)[0]
    thread = take(step(batch, a.layer, 0), 1)
    _write_all(a, address_of(pointer), batch, step(batch, a.layer, 1), thread)
    call_at(a.attend, (address_of(pointer), a.batch, step(batch, a.layer, 2), thread))


_attention_at, _batch_at = reader(ATTENTION), reader(BATCH)
attends = {form: kernel_of_counts(4, form.name)(make_attend(form)) for form in STORAGES}
writes = {form: kernel_of_counts(4, form.name)(make_write(form)) for form in STORAGES}
attention = kernel(ATTENTION)(_attention)
