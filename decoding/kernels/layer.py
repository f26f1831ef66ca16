"""One decoder layer of the Llama family from hidden states to hidden states, in one parallel region.

norm, q|k|v, rotation, attention, output projection, residual, norm, gate|up, activation, down projection, residual.
Threads meet at a barrier after each step; `Counters` number the steps whose work is shared out piece by piece.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from decoding.kernels.attend import ATTENTION, BATCH, COUNTER_STRIDE, attend, write
from decoding.kernels.compiled import inner, kernel, reader, record
from decoding.kernels.products import make_multiply
from decoding.kernels.rows import add, gate, rms_norm, rotate
from decoding.kernels.tile import Format
from decoding.kernels.vectors import call, take

LAYER = record(
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
    attention="address",  # ATTENTION
    input_norm="address",
    input_eps="float",
    qkv_weight="address",
    qkv_bias="address",
    qkv_columns="count",
    query_norm="address",
    key_norm="address",
    head_eps="float",
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

_batch_at, _attention_at = reader(BATCH), reader(ATTENTION)
ROWS_AT_ONCE = 4


@inner
def _meet(batch):
    if batch.team > 1:
        call(batch.barrier)


@inner
def _counter(batch, step):
    return batch.counters + COUNTER_STRIDE * step


@inner
def _begin(layer, batch, counter):
    first = take(counter, ROWS_AT_ONCE)
    while first < batch.tokens:
        for row in range(first, min(batch.tokens, first + ROWS_AT_ONCE)):
            at = 4 * row * layer.hidden
            rms_norm(layer.x + at, layer.input_norm, layer.input_eps, layer.normed + at, layer.hidden)
        first = take(counter, ROWS_AT_ONCE)


@inner
def _prepare(layer, a, batch, counter):
    """Rotate queries and keys, put keys and values into their pages."""
    first = take(counter, ROWS_AT_ONCE)
    while first < batch.tokens:
        for token in range(first, min(batch.tokens, first + ROWS_AT_ONCE)):
            cos, sin = layer.cos + 4 * token * layer.rotary, layer.sin + 4 * token * layer.rotary
            for head in range(a.heads):
                at = a.query + token * a.query_token + head * a.query_head
                if layer.query_norm != 0:
                    rms_norm(at, layer.query_norm, layer.head_eps, at, a.head_dim)
                rotate(at, cos, sin, layer.rotary)
            for head in range(a.kv_heads):
                at = a.key + token * a.key_token + head * a.key_head
                if layer.key_norm != 0:
                    rms_norm(at, layer.key_norm, layer.head_eps, at, a.head_dim)
                rotate(at, cos, sin, layer.rotary)
            write(a, batch.slots, token)
        first = take(counter, ROWS_AT_ONCE)


@inner
def _continue(layer, batch, counter):
    first = take(counter, ROWS_AT_ONCE)
    while first < batch.tokens:
        for row in range(first, min(batch.tokens, first + ROWS_AT_ONCE)):
            at = 4 * row * layer.hidden
            add(layer.x + at, layer.projected + at, layer.middle + at, layer.hidden)
            rms_norm(layer.middle + at, layer.middle_norm, layer.middle_eps, layer.normed + at, layer.hidden)
        first = take(counter, ROWS_AT_ONCE)


@inner
def _end(layer, batch, counter):
    first = take(counter, ROWS_AT_ONCE)
    while first < batch.tokens:
        for row in range(first, min(batch.tokens, first + ROWS_AT_ONCE)):
            at = 4 * row * layer.hidden
            add(layer.middle + at, layer.projected + at, layer.out + at, layer.hidden)
        first = take(counter, ROWS_AT_ONCE)


def _make_layer(form: Format) -> Any:
    multiply = make_multiply(form)
    multiply_gated = make_multiply(form, gate)

    @inner
    def run(layer, a, batch):
        thread = take(_counter(batch, 0), 1)
        rows, hidden, middle = batch.tokens, layer.hidden, layer.intermediate
        _begin(layer, batch, _counter(batch, 1))
        _meet(batch)
        step = _counter(batch, 2)
        multiply(layer.normed, layer.qkv_weight, layer.qkv_bias, layer.qkv, rows, hidden, layer.qkv_columns, step, 0)
        _meet(batch)
        _prepare(layer, a, batch, _counter(batch, 3))
        _meet(batch)
        attend(a, batch, _counter(batch, 4), thread)
        _meet(batch)
        width, step = a.heads * a.v_head_dim, _counter(batch, 5)
        multiply(layer.attended, layer.out_weight, layer.out_bias, layer.projected, rows, width, hidden, step, 0)
        _meet(batch)
        _continue(layer, batch, _counter(batch, 6))
        _meet(batch)
        width, step, bias = 2 * middle, _counter(batch, 7), layer.gate_up_bias
        weight, done = layer.gate_up_weight, layer.activated
        multiply_gated(layer.normed, weight, bias, layer.gate_up, rows, hidden, width, step, done)
        _meet(batch)
        step = _counter(batch, 8)
        multiply(done, layer.down_weight, layer.down_bias, layer.projected, rows, middle, hidden, step, 0)
        _meet(batch)
        _end(layer, batch, _counter(batch, 9))

    return run


_float32, _bfloat16 = _make_layer(Format.FLOAT32), _make_layer(Format.BFLOAT16)


def _run_float32(pointer):
    layer = carray(pointer, 1)[0]
    _float32(layer, carray(_attention_at(layer.attention), 1)[0], carray(_batch_at(layer.batch), 1)[0])


def _run_bfloat16(pointer):
    layer = carray(pointer, 1)[0]
    _bfloat16(layer, carray(_attention_at(layer.attention), 1)[0], carray(_batch_at(layer.batch), 1)[0])


layers = {Format.FLOAT32: kernel(LAYER)(_run_float32), Format.BFLOAT16: kernel(LAYER)(_run_bfloat16)}
