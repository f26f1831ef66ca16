"""Decoder layers of the Llama family from hidden states to hidden states, one after the other, in one parallel region.

norm, q|k|v, rotation, attention, output projection, residual, norm, gate|up, activation, down projection, residual:
each a numbered step whose work is shared out piece by piece (`sharing.py`); step 0 hands out the threads' numbers.
Before the products of int8 and int4 weights, one more step rounds their input.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from decoding.kernels.cpu.attend import ATTENTION, BATCH, attend, step, write
from decoding.kernels.cpu.compiled import inner, kernel, reader, record
from decoding.kernels.cpu.products import make_multiply, make_round_rows
from decoding.kernels.cpu.rows import add, gate, rms_norm, rotate
from decoding.kernels.cpu.sharing import finish, take, wait
from decoding.kernels.cpu.tile import PANEL, Format

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
    rounded="address",  # room for any of them as int16, and its scales
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
)

STACK = record(
    layers="address",  # LAYER records, one after the other
    count="count",
    size="count",  # bytes of one
)

_batch_at, _attention_at, _layer_at = reader(BATCH), reader(ATTENTION), reader(LAYER)
ROWS_AT_ONCE = 4


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
def _prepare(layer, a, batch, counts):
    """Turn queries and keys, put keys and values into their pages."""
    first = take(counts, ROWS_AT_ONCE)
    while first < batch.tokens:
        end = min(batch.tokens, first + ROWS_AT_ONCE)
        for token in range(first, end):
            cos, sin = layer.cos + 4 * token * layer.rotary, layer.sin + 4 * token * layer.rotary
            _turn(layer, a.heads, a.query + token * a.query_token, a.query_head, layer.query_norm, cos, sin)
            _turn(layer, a.kv_heads, a.key + token * a.key_token, a.key_head, layer.key_norm, cos, sin)
            write(a, batch.slots, token)
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
def _as_it_is(_layer, _batch, x, _weight, _depth, _number):
    """The input of a product of float weights."""
    return x


def _make_rounded(form: Format) -> Any:
    round_rows = make_round_rows(form)

    @inner
    def rounded(layer, batch, x, weight, depth, number):
        """The input of a product of int8 or int4 weights."""
        round_rows(x, weight, layer.rounded, batch.tokens, depth, step(batch, layer.index, number))
        return layer.rounded

    return rounded


def _make_layer(form: Format) -> Any:
    multiply = make_multiply(form)
    multiply_gated = make_multiply(form, gate)
    ready = _make_rounded(form) if form.rounds_rows else _as_it_is

    @inner
    def product(batch, counts, x, weight, bias, out, depth, columns):
        multiply(x, weight, bias, out, batch.tokens, depth, columns, counts, 0)
        wait(counts, columns // PANEL)

    @inner
    def run(layer, a, batch, thread):
        index, hidden, middle = a.layer, layer.hidden, layer.intermediate
        _begin(layer, batch, step(batch, index, 1))
        counts, x = step(batch, index, 2), ready(layer, batch, layer.normed, layer.qkv_weight, hidden, 10)
        product(batch, counts, x, layer.qkv_weight, layer.qkv_bias, layer.qkv, hidden, layer.qkv_columns)
        _prepare(layer, a, batch, step(batch, index, 3))
        attend(a, batch, step(batch, index, 4), thread)
        width = a.heads * a.v_head_dim
        counts, x = step(batch, index, 5), ready(layer, batch, layer.attended, layer.out_weight, width, 11)
        product(batch, counts, x, layer.out_weight, layer.out_bias, layer.projected, width, hidden)
        _continue(layer, batch, step(batch, index, 6))
        counts, x = step(batch, index, 7), ready(layer, batch, layer.normed, layer.gate_up_weight, hidden, 12)
        bias, both = layer.gate_up_bias, layer.gate_up
        multiply_gated(x, layer.gate_up_weight, bias, both, batch.tokens, hidden, 2 * middle, counts, layer.activated)
        wait(counts, 2 * middle // PANEL)
        counts, x = step(batch, index, 8), ready(layer, batch, layer.activated, layer.down_weight, middle, 13)
        product(batch, counts, x, layer.down_weight, layer.down_bias, layer.projected, middle, hidden)
        _end(layer, batch, step(batch, index, 9))

    @inner
    def run_all(stack):
        first = carray(_layer_at(stack.layers), 1)[0]
        batch = carray(_batch_at(first.batch), 1)[0]
        thread = take(step(batch, first.index, 0), 1)
        for i in range(stack.count):
            layer = carray(_layer_at(stack.layers + i * stack.size), 1)[0]
            run(layer, carray(_attention_at(layer.attention), 1)[0], batch, thread)

    return run_all


_float32, _bfloat16, _int8, _int4 = (_make_layer(form) for form in Format)


def _run_float32(pointer):
    _float32(carray(pointer, 1)[0])


def _run_bfloat16(pointer):
    _bfloat16(carray(pointer, 1)[0])


def _run_int8(pointer):
    _int8(carray(pointer, 1)[0])


def _run_int4(pointer):
    _int4(carray(pointer, 1)[0])


stacks = {
    Format.FLOAT32: kernel(STACK)(_run_float32),
    Format.BFLOAT16: kernel(STACK)(_run_bfloat16),
    Format.INT8: kernel(STACK)(_run_int8),
    Format.INT4: kernel(STACK)(_run_int4),
}
