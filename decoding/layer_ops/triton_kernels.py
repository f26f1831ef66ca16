"""Triton kernels between a decoder layer's products: residual sum with RMSNorm, rotation of heads, gated activation.

A result depends on its own row alone. Rounds where transformers' own code does: a sum before it is normed, a normed
value before its weight, an activation before its product. T tokens.
"""

import triton
import triton.language as tl


@triton.jit
def _normed(x, width: tl.constexpr, eps):
    """RMSNorm without its weight of x, float32, 0 beyond the width: one sum over everything."""
    return x * tl.rsqrt(tl.sum(x * x) / width + eps)


@triton.jit
def add_norm(
    x,  # [T, width]
    y,  # [T, width]
    weight,  # [width]
    total,  # x + y: [T, width]
    normed,  # [T, width]
    eps,
    width: tl.constexpr,
    WIDTH: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Grid (T)."""
    start = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, WIDTH)
    is_in = at < width
    value = tl.load(x + start + at, mask=is_in, other=0.0)
    if ADDS:
        other = tl.load(y + start + at, mask=is_in, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(total + start + at, value, mask=is_in)
    found = _normed(value.to(tl.float32), width, eps).to(value.dtype).to(tl.float32)
    found = found * tl.load(weight + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(normed + start + at, found.to(normed.dtype.element_ty), mask=is_in)


@triton.jit
def _weighed(x, query_weight, key_weight, is_query, is_in):
    """x times the weight of its kind, rounded as x is, float32."""
    of_query = tl.load(query_weight, mask=is_in & is_query, other=0.0).to(tl.float32)
    of_key = tl.load(key_weight, mask=is_in & (is_query == 0), other=0.0).to(tl.float32)
    return (x.to(tl.float32) * (of_query + of_key)).to(x.dtype).to(tl.float32)


@triton.jit
def rotate(
    heads,  # [T, row]: query heads, key heads and whatever follows
    cos,  # [T, dim]
    sin,  # [T, dim]
    query_weight,  # [dim]
    key_weight,  # [dim]
    eps,
    num_queries,
    row: tl.constexpr,
    dim: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
):
    """A head in place: RMSNorm over it, then its halves (a, b) to (a cos - b sin, b cos + a sin). Grid (T, heads)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = dim // 2
    at = tl.arange(0, HALF)
    is_in = at < half
    first = heads + token * row + head * dim + at
    a = tl.load(first, mask=is_in, other=0.0)
    b = tl.load(first + half, mask=is_in, other=0.0)
    dtype = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if HAS_NORMS:
        scale = tl.rsqrt((tl.sum(a * a) + tl.sum(b * b)) / dim + eps)
        is_query = head < num_queries
        a = _weighed((a * scale).to(dtype), query_weight + at, key_weight + at, is_query, is_in)
        b = _weighed((b * scale).to(dtype), query_weight + half + at, key_weight + half + at, is_query, is_in)
    if ROTATES:
        angle = token * dim + at
        cos_a = tl.load(cos + angle, mask=is_in, other=0.0).to(tl.float32)
        cos_b = tl.load(cos + angle + half, mask=is_in, other=0.0).to(tl.float32)
        sin_a = tl.load(sin + angle, mask=is_in, other=0.0).to(tl.float32)
        sin_b = tl.load(sin + angle + half, mask=is_in, other=0.0).to(tl.float32)
        a, b = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    tl.store(first, a.to(dtype), mask=is_in)
    tl.store(first + half, b.to(dtype), mask=is_in)


@triton.jit
def silu_product(
    both,  # gate, then up: [T, 2 * width]
    out,  # [T, width]
    width: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """silu(gate) * up. Grid (T, blocks)."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < width
    gate = tl.load(both + token * 2 * width + at, mask=is_in, other=0.0)
    up = tl.load(both + token * 2 * width + width + at, mask=is_in, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    activated = (wide / (1 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + token * width + at, (activated * up).to(out.dtype.element_ty), mask=is_in)
