"""Triton kernels of a decoder layer's small steps: norms, rotation of queries and keys, activations.

Each step that torch would compute in several launches is one here, in float32, rounded once at its end. A program
computes a token, or a part of one, by itself: no number depends on what else is in the batch. Where a product
follows that takes eight bits, the step leaves its result as e4m3 with a scale for each token.

T tokens.
"""

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)  # of e4m3
_LEAST = tl.constexpr(1e-12)  # a row of zeros has a scale, too


@triton.jit
def _store_rounded(out, scales, row, places, values, is_there, QUANTISES: tl.constexpr):
    """A whole row, as it is or divided by a scale that makes its largest value the largest of e4m3."""
    if QUANTISES:
        largest = tl.max(tl.where(is_there, tl.abs(values), 0.0), 0)
        scale = tl.maximum(largest, _LEAST) / LARGEST
        tl.store(scales + row, scale)
        values = tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST)
    tl.store(out + places, values.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def normalise(
    x,  # [T, width]
    delta,  # [T, width]
    weight,  # [width]
    total,  # [T, width]
    out,  # [T, width]
    scales,  # float32 [T]
    eps: tl.constexpr,
    width: tl.constexpr,
    WIDTH: tl.constexpr,
    ADDS: tl.constexpr,
    QUANTISES: tl.constexpr,
):
    """RMS norm of x, or of total = x + delta. Grid (T)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    is_there = at < width
    places = row * width + at
    values = tl.load(x + places, mask=is_there, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(delta + places, mask=is_there, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + places, rounded, mask=is_there)
        values = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    normed = values * scale * tl.load(weight + at, mask=is_there, other=0.0).to(tl.float32)
    _store_rounded(out, scales, row, places, normed, is_there, QUANTISES)


@triton.jit
def _head(row, norm, cos, sin, at, dim: tl.constexpr, rotary: tl.constexpr, eps: tl.constexpr, NORMS: tl.constexpr):
    """One head of a query or a key, normalised and rotated: float32 [DIM]."""
    is_there = at < dim
    x = tl.load(row + at, mask=is_there, other=0.0).to(tl.float32)
    scale = 1.0
    if NORMS:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / dim + eps)
        x = x * scale * tl.load(norm + at, mask=is_there, other=0.0).to(tl.float32)
    if rotary:
        half: tl.constexpr = rotary // 2
        turns = at < rotary
        other_at = tl.where(at < half, at + half, at - half)
        other = tl.load(row + other_at, mask=turns, other=0.0).to(tl.float32)
        if NORMS:
            other = other * scale * tl.load(norm + other_at, mask=turns, other=0.0).to(tl.float32)
        c = tl.load(cos + at, mask=turns, other=1.0).to(tl.float32)
        s = tl.load(sin + at, mask=turns, other=0.0).to(tl.float32)
        x = x * c + tl.where(at < half, -other, other) * s
    return x


@triton.jit(do_not_specialize_on_alignment=["slots"])
def place(
    qkv,  # [T, heads * dim + kv_heads * (dim + v_dim)]
    query,  # [T, heads, dim]
    key_pages,  # [pages, kv_heads, page_size, dim]
    value_pages,  # [pages, kv_heads, page_size, v_dim]
    slots,  # int64 [T]
    cos,  # [T, rotary]
    sin,  # [T, rotary]
    query_norm,  # [dim]
    key_norm,  # [dim]
    eps: tl.constexpr,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    dim: tl.constexpr,
    v_dim: tl.constexpr,
    page_size: tl.constexpr,
    rotary: tl.constexpr,  # 0: nothing turns
    NORMS: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
):
    """Queries to where attention reads them, keys and values into their slots. Grid (T, heads + 2 * kv_heads)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = qkv + token * (heads * dim + kv_heads * (dim + v_dim))
    cos += token * rotary
    sin += token * rotary
    at = tl.arange(0, DIM)
    if head < heads:
        turned = _head(row + head * dim, query_norm, cos, sin, at, dim, rotary, eps, NORMS)
        tl.store(query + (token * heads + head) * dim + at, turned.to(query.dtype.element_ty), mask=at < dim)
    else:
        slot = tl.load(slots + token)
        kv_head = (head - heads) % kv_heads
        at_slot = (slot // page_size * kv_heads + kv_head) * page_size + slot % page_size
        if head < heads + kv_heads:
            turned = _head(row + head * dim, key_norm, cos, sin, at, dim, rotary, eps, NORMS)
            tl.store(key_pages + at_slot * dim + at, turned.to(key_pages.dtype.element_ty), mask=at < dim)
        else:
            v_at = tl.arange(0, V_DIM)
            value = tl.load(row + (heads + kv_heads) * dim + kv_head * v_dim + v_at, mask=v_at < v_dim, other=0.0)
            value = value.to(tl.float32).to(value_pages.dtype.element_ty)
            tl.store(value_pages + at_slot * v_dim + v_at, value, mask=v_at < v_dim)


@triton.jit
def _activated(row, at, width: tl.constexpr):
    """silu(gate) * up of a row [gate, up]: float32."""
    gate = tl.load(row + at, mask=at < width, other=0.0).to(tl.float32)
    up = tl.load(row + width + at, mask=at < width, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def activate(
    gate_up,  # [T, 2 * width]
    out,  # [T, width]
    width: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """silu(gate) * up. Grid (T, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = _activated(gate_up + row * 2 * width, at, width)
    tl.store(out + row * width + at, values.to(out.dtype.element_ty), mask=at < width)


@triton.jit
def activate_quantised(
    gate_up,  # [T, 2 * width]
    out,  # e4m3 [T, width]
    scales,  # float32 [T]
    width: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """As `activate`, in eight bits: a row's scale must be known before any of it is rounded. Grid (T)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    values = _activated(gate_up + row * 2 * width, at, width)
    _store_rounded(out, scales, row, row * width + at, values, at < width, True)


@triton.jit
def quantise(
    x,  # [T, width]
    out,  # e4m3 [T, width]
    scales,  # float32 [T]
    width: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Rows in eight bits. Grid (T)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    values = tl.load(x + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    _store_rounded(out, scales, row, row * width + at, values, at < width, True)
