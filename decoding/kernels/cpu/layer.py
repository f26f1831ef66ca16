"""Decoder layers of the Llama family from hidden states to hidden states, one after the other, in one parallel region.

norm, q|k|v, rotation, attention, output projection, residual, norm, gate|up, activation, down projection, residual:
each a numbered step whose work is shared out piece by piece (`sharing.py`); step 0 hands out the threads' numbers.
Before the products of weights that meet rounded rows, one more step rounds these.
"""

from __future__ import annotations

from numba import carray

from decoding.kernels.cpu.attend import ATTENTION, BATCH, step
from decoding.kernels.cpu.compiled import call_at, inner, kernel, reader, record
from decoding.kernels.cpu.rows import add, rms_norm, rotate
from decoding.kernels.cpu.sharing import finish, take, wait
from decoding.kernels.cpu.tile import PANEL

LAYER = record(
    index="count",
    x="address",  # [T, hidden]
    out="address",  # [T, hidden]
    cos="address",  # [T, rotary]
    sin="address",  # [T, rotary]
    batch="address",  # BATCH
    rotary="count",
    normed="address",  # [T, hidden]
    qkv="address",  # [T, qkv_columns]
    attended="address",  # [T, heads * head_dim]
    projected="address",  # [T, hidden]
    middle="address",  # [T, hidden]
    gate_up="address",  # [T, 2 * intermediate]
    activated="address",  # [T, intermediate]
    rounded="address",  # room for any of them as the weights' form wants it
    attention="address",  # ATTENTION
    input_norm="address",
    input_eps="float",
    qkv_weight="address",
    qkv_bias="address",
    qkv_columns="count",
    query_norm="address",
    key_norm="address",
    head_eps="float",
    head_dim="count",
    out_weight="address",
    out_bias="address",
    middle_norm="address",
    middle_eps="float",
    gate_up_weight="address",
    gate_up_bias="address",
    down_weight="address",
    down_bias="address",
    hidden="count",
    intermediate="count",
    multiply="address",  # `products.py`: for weights in this layer's format
    round_rows="address",  # or 0
)

STACK = record(
    layers="address",  # LAYER records, one after the other
    count="count",
    size="count",  # bytes of one
)

_batch_at, _attention_at, _layer_at = reader(BATCH), reader(ATTENTION), reader(LAYER)
ROWS_AT_ONCE = 4
ROUNDING = 8  # from the number of a product's step to that of its input's rounding


@inner
def _begin(layer, batch, counts):
    first = take(counts, ROWS_AT_ONCE)
    while first < batch.tokens:
        end = min(batch.tokens, first + ROWS_AT_ONCE)
        for row in range(first, end):
            at = 4 * row * layer.hidden
            rms_norm(layer.x + at, layer.input_norm, layer.input_eps, layer.normed + at, layer.hidden)
        finish(counts, end - first)
        first = take(counts, ROWS_AT_ONCE)
    wait(counts, batch.tokens)


@inner
def _turn(layer, heads, start, stride, norm, cos, sin):
    """Norm, if there is one, and rotation of the heads of one token, in place."""
    for head in range(heads):
        at = start + head * stride
        if norm != 0:
            rms_norm(at, norm, layer.head_eps, at, layer.head_dim)
        rotate(at, cos, sin, layer.rotary)


@inner
def _prepare(layer, a, batch, counts, thread):
    """Turn queries and keys, put keys and values into their pages."""
    first = take(counts, ROWS_AT_ONCE)
    while first < batch.tokens:
        end = min(batch.tokens, first + ROWS_AT_ONCE)
        for token in range(first, end):
            cos, sin = layer.cos + 4 * token * layer.rotary, layer.sin + 4 * token * layer.rotary
            _turn(layer, a.heads, a.query + token * a.query_token, a.query_head, layer.query_norm, cos, sin)
            _turn(layer, a.kv_heads, a.key + token * a.key_token, a.key_head, layer.key_norm, cos, sin)
            call_at(a.write, (layer.attention, layer.batch, token, thread))
        finish(counts, end - first)
        first = take(counts, ROWS_AT_ONCE)
    wait(counts, batch.tokens)


@inner
def _continue(layer, batch, counts):
    first = take(counts, ROWS_AT_ONCE)
    while first < batch.tokens:
        end = min(batch.tokens, first + ROWS_AT_ONCE)
        for row in range(first, end):
            at = 4 * row * layer.hidden
            add(layer.x + at, layer.projected + at, layer.middle + at, layer.hidden)
            rms_norm(layer.middle + at, layer.middle_norm, layer.middle_eps, layer.normed + at, layer.hidden)
        finish(counts, end - first)
        first = take(counts, ROWS_AT_ONCE)
    wait(counts, batch.tokens)


@inner
def _end(layer, batch, counts):
    first = take(counts, ROWS_AT_ONCE)
    while first < batch.tokens:
        end = min(batch.tokens, first + ROWS_AT_ONCE)
        for row in range(first, end):
            at = 4 * row * layer.hidden
            add(layer.middle + at, layer.projected + at, layer.out + at, layer.hidden)
        finish(counts, end - first)
        first = take(counts, ROWS_AT_ONCE)
    wait(counts, batch.tokens)


@inner
def _product(layer, batch, number, x, depth, weight, bias, out, columns, activated):
    """A step of its own for the product, and one before it that rounds its input, where the weights ask for it."""
    if layer.round_rows != 0:
        rounding = step(batch, layer.index, number + ROUNDING)
        call_at(layer.round_rows, (x, layer.rounded, batch.tokens, depth, rounding))
        x = layer.rounded
    counts = step(batch, layer.index, number)
    call_at(layer.multiply, (x, weight, bias, out, batch.tokens, depth, columns, counts, activated))
    wait(counts, columns // PANEL)


@inner
def _run_layer(layer, a, batch, thread):
    index, hidden, middle = layer.index, layer.hidden, layer.intermediate
    width = a.heads * a.v_head_dim
    _begin(layer, batch, step(batch, index, 1))
    _product(layer, batch, 2, layer.normed, hidden, layer.qkv_weight, layer.qkv_bias, layer.qkv, layer.qkv_columns, 0)
    _prepare(layer, a, batch, step(batch, index, 3), thread)
    call_at(a.attend, (layer.attention, layer.batch, step(batch, index, 4), thread))
    _product(layer, batch, 5, layer.attended, width, layer.out_weight, layer.out_bias, layer.projected, hidden, 0)
    _continue(layer, batch, step(batch, index, 6))
    bias, both, activated = layer.gate_up_bias, layer.gate_up, layer.activated
    _product(layer, batch, 7, layer.normed, hidden, layer.gate_up_weight, bias, both, 2 * middle, activated)
    _product(layer, batch, 8, layer.activated, middle, layer.down_weight, layer.down_bias, layer.projected, hidden, 0)
    _end(layer, batch, step(batch, index, 9))


def _run_stack(pointer):
    stack = carray(pointer, 1)[0]
    first = carray(_layer_at(stack.layers), 1)[0]
    batch = carray(_batch_at(first.batch), 1)[0]
    thread = take(step(batch, first.index, 0), 1)
    for i in range(stack.count):
        layer = carray(_layer_at(stack.layers + i * stack.size), 1)[0]
        _run_layer(layer, carray(_attention_at(layer.attention), 1)[0], batch, thread)


run_stack = kernel(STACK)(_run_stack)
