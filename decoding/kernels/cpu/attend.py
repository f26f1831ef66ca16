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
from decoding.kernels.cpu.sharing import COUNTS_BYTES, finish, take, wait
from decoding.kernels.cpu.softmax import STATE_BYTES, begin, fill, make_softmax
from decoding.kernels.cpu.storage import PAGE, STORAGES
from decoding.kernels.cpu.tile import PANEL, Format
from decoding.kernels.cpu.vectors import load_one, prefetch, word

BLOCK = 128  # keys
TILE_ROWS = 48  # queries times heads of a group
LINE = 64  # bytes

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
    parts="address",  # int64 [N, 4], consecutive tokens of one row: page table, first token, tokens, first position
    tables="address",  # int64 [rows, table_width]
    table_width="count",
    scratch="address",  # one room for each thread
    room="count",  # bytes of it
    counts="address",  # of every layer's STEPS steps, zero before the forward
)
STEPS = 17
_PART_BYTES = 32


def room_bytes(heads: int, kv_heads: int, head_dim: int, v_width: int) -> int:
    """What one thread needs: queries, scores, sums, and two numbers for each row of a tile."""
    rows = max(TILE_ROWS, heads // kv_heads)
    return rows * (4 * (head_dim + PANEL) + 4 * BLOCK + 4 * v_width + STATE_BYTES) + LINE


@inner
def _prefetch_all(address, size):
    for at in range(0, size, LINE):
        prefetch(address + at)


def make_attend(form: Format) -> Any:
    """attend(attention, batch, counts, thread): one thread's share, back when all are done."""
    softmax, copy_query = make_softmax(form), STORAGES[form].copy_query
    soften, settle = softmax.soften, softmax.finish
    scores_of, add_values = make_scores(form), make_sums(form)
    depth = form.depth
    size = 4 // depth  # of a number

    @inner
    def page_at(a, table, key, kv_head):
        return word(table, key // PAGE) * a.kv_heads + kv_head

    @inner
    def table_of(batch, part):
        return batch.tables + 8 * word(part, 0) * batch.table_width

    @inner
    def sharing(batch, part, parts, key):
        """How many of the parts, from the first on, have keys from there on, in the same page."""
        if word(part, 3) + word(part, 2) <= key:
            return 0
        page, count = word(table_of(batch, part), key // PAGE), 1
        while count < parts:
            other = part + _PART_BYTES * count
            if word(other, 3) + word(other, 2) <= key or word(table_of(batch, other), key // PAGE) != page:
                break
            count += 1
        return count

    @inner
    def tokens_of(part, parts):
        count = 0
        for each in range(parts):
            count += word(part + _PART_BYTES * each, 2)
        return count

    @inner
    def end_of(part, parts):
        """Behind the last key that one of them sees."""
        end = 0
        for each in range(parts):
            end = max(end, word(part + _PART_BYTES * each, 3) + word(part + _PART_BYTES * each, 2))
        return end

    @inner
    def copy_queries(a, part, parts, kv_head, room, lda):
        group = a.heads // a.kv_heads
        for each in range(parts):
            token = word(part + _PART_BYTES * each, 1)
            for query in range(token, token + word(part + _PART_BYTES * each, 2)):
                source = a.query + query * a.query_token + kv_head * group * a.query_head
                for _ in range(group):
                    copy_query(source, a.head_dim, room)
                    source += a.query_head
                    room += lda

    @inner
    def soften_block(a, part, parts, scores, sums, state, start, keys):
        group = a.heads // a.kv_heads
        for each in range(parts):
            position = word(part + _PART_BYTES * each, 3)
            for own in range(position, position + word(part + _PART_BYTES * each, 2)):
                first, end = max(0, own - a.window + 1 - start), min(own + 1 - start, keys)
                for _ in range(group):
                    soften(scores, sums, a.v_width, state, keys, first, end, a.scaling, a.softcap)
                    scores += 4 * BLOCK
                    sums += 4 * a.v_width
                    state += STATE_BYTES

    @inner
    def attend_block(a, batch, part, parts, kv_head, room, lda, rows, start, end):
        """One block of keys [start, end) for every row of the tile."""
        group, turns = a.heads // a.kv_heads, (a.head_dim + depth - 1) // depth
        key_bytes, value_bytes = 4 * PAGE * turns, size * PAGE * a.v_width
        scores = room + rows * lda
        sums = scores + 4 * rows * BLOCK
        state = sums + 4 * rows * a.v_width
        for key in range(start, end, PAGE):
            each, row = 0, 0
            while each < parts:
                own = part + _PART_BYTES * each
                count = sharing(batch, own, parts - each, key)
                some = group * tokens_of(own, max(count, 1))
                if count > 0:
                    page = page_at(a, table_of(batch, own), key, kv_head)
                    to = scores + 4 * (row * BLOCK + key - start)
                    _prefetch_all(a.value_pages + page * value_bytes, value_bytes)
                    scores_of(some, room + row * lda, lda, a.key_pages + page * key_bytes, turns, to, 4 * BLOCK)
                row += some
                each += max(count, 1)
        soften_block(a, part, parts, scores, sums, state, start, (end - start + PANEL - 1) // PANEL * PANEL)
        for key in range(start, end, PAGE):
            each, row = 0, 0
            while each < parts:
                own = part + _PART_BYTES * each
                count = sharing(batch, own, parts - each, key)
                some = group * tokens_of(own, max(count, 1))
                if count > 0:
                    page = page_at(a, table_of(batch, own), key, kv_head)
                    keys = min(PAGE, end_of(own, count) - key)
                    if key + BLOCK < word(own, 3) + word(own, 2):
                        following = page_at(a, table_of(batch, own), key + BLOCK, kv_head)
                        _prefetch_all(a.key_pages + following * key_bytes, key_bytes)
                    at, to = scores + 4 * row * BLOCK + size * (key - start), sums + 4 * row * a.v_width
                    values = a.value_pages + page * value_bytes
                    taken = (keys + depth - 1) // depth
                    add_values(some, a.v_width // PANEL, at, 4 * BLOCK, values, taken, to, 4 * a.v_width)
                row += some
                each += max(count, 1)

    @inner
    def write_out(a, part, parts, kv_head, sums, state):
        group = a.heads // a.kv_heads
        for each in range(parts):
            token = word(part + _PART_BYTES * each, 1)
            for query in range(token, token + word(part + _PART_BYTES * each, 2)):
                for head in range(kv_head * group, (kv_head + 1) * group):
                    sink = load_one(a.sinks + 4 * head) if a.sinks != 0 else float32(0)
                    out = a.out + 4 * (query * a.heads + head) * a.v_head_dim
                    settle(sums, a.v_head_dim, state, sink, a.sinks != 0, out)
                    sums += 4 * a.v_width
                    state += STATE_BYTES

    @inner
    def first_key(a, part, parts):
        """The first that one of them sees."""
        first = word(part, 3)
        for each in range(1, parts):
            first = min(first, word(part + _PART_BYTES * each, 3))
        return max(0, first - a.window + 1)

    @inner
    def attend_piece(a, batch, part, parts, kv_head, room):
        """All heads of one group."""
        rows = tokens_of(part, parts) * (a.heads // a.kv_heads)
        lda = size * ((a.head_dim + PANEL - 1) // PANEL * PANEL)
        sums = room + rows * (lda + 4 * BLOCK)
        state = sums + 4 * rows * a.v_width
        copy_queries(a, part, parts, kv_head, room, lda)
        fill(sums, 4 * rows * a.v_width, float32(0))
        for row in range(rows):
            begin(state + STATE_BYTES * row)
        end = end_of(part, parts)
        for start in range(first_key(a, part, parts) // BLOCK * BLOCK, end, BLOCK):
            attend_block(a, batch, part, parts, kv_head, room, lda, rows, start, min(end, start + BLOCK))
        write_out(a, part, parts, kv_head, sums, state)

    def attend(attention_at, batch_at, counts, thread):
        a, batch = carray(_attention_at(attention_at), 1)[0], carray(_batch_at(batch_at), 1)[0]
        room = batch.scratch + thread * batch.room
        items = batch.num_pieces * a.kv_heads
        item = take(counts, 1)
        while item < items:
            piece = batch.pieces + 16 * (item // a.kv_heads)
            part = batch.parts + _PART_BYTES * word(piece, 0)
            attend_piece(a, batch, part, word(piece, 1), item % a.kv_heads, room)
            finish(counts, 1)
            item = take(counts, 1)
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
