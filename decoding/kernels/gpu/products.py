"""Triton kernels of a product x W^T + b whose sums are the same whatever the number of rows.

A result is a fixed sequence of sums: the depth goes in blocks of DEPTH, blocks in spans of SPAN, spans are added in
order. Sizes of tiles are the caller's, who must choose them by the matrix alone. Whether one program walks all spans or
each span has its own changes who computes a sum and never which.
"""

import triton
import triton.language as tl


@triton.jit
def _dot(a, b, total, WIDE: tl.constexpr):
    """total + a b in float32; WIDE: of operands widened first, for the interpreter multiplies no bfloat16."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _span(
    x,
    weight,
    tokens,
    is_row,
    columns_at,
    is_column,
    start,
    end,
    depth: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Products over start .. end of the depth: float32 [ROWS, COLUMNS]."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(start, end, DEPTH):
        at = first + tl.arange(0, DEPTH)
        is_in = at < end
        a = tl.load(x + tokens[:, None] * depth + at[None, :], mask=is_row[:, None] & is_in[None, :], other=0.0)
        places = weight + columns_at[None, :] * depth + at[:, None]
        b = tl.load(places, mask=is_column[None, :] & is_in[:, None], other=0.0)
        total = _dot(a, b, total, WIDE)
    return total


@triton.jit
def _finish(out, bias, places, columns_at, is_there, is_column, total, BIASES: tl.constexpr, ADDS: tl.constexpr):
    """Add what is to be added, and round once."""
    if BIASES:
        total += tl.load(bias + columns_at, mask=is_column, other=0.0).to(tl.float32)
    if ADDS:
        total += tl.load(out + places, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=is_there)


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x,  # [rows, depth]
    weight,  # [columns, depth]
    bias,  # [columns]
    out,  # [rows, columns]
    parts,  # float32 [spans, rows, columns]
    rows,
    columns: tl.constexpr,
    depth: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,  # tiles of rows that take turns at the same columns
    BIASES: tl.constexpr,
    ADDS: tl.constexpr,  # to what `out` holds
    IS_SPLIT: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One tile of results. Grid (tiles, spans): split, a program leaves the sums of its span to `add_spans`; else (one
    program along spans) it walks them all.
    """
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    tile = tl.program_id(0)
    first_row_tile = tile // (GROUP * column_tiles) * GROUP
    size = tl.minimum(row_tiles - first_row_tile, GROUP)
    within = tile % (GROUP * column_tiles)
    tokens = ((first_row_tile + within % size) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns_at = (within // size * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    is_row, is_column = tokens < rows, columns_at < columns
    is_there = is_row[:, None] & is_column[None, :]
    places = tokens[:, None] * columns + columns_at[None, :]
    if IS_SPLIT:
        start = tl.program_id(1) * SPAN
        end = tl.minimum(start + SPAN, depth)
        total = _span(
            x, weight, tokens, is_row, columns_at, is_column, start, end, depth, ROWS, COLUMNS, DEPTH, WIDE
        )  # fmt: skip
        tl.store(parts + tl.program_id(1).to(tl.int64) * rows * columns + places, total, mask=is_there)
    else:
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, depth, SPAN):
            end = tl.minimum(start + SPAN, depth)
            total += _span(
                x, weight, tokens, is_row, columns_at, is_column, start, end, depth, ROWS, COLUMNS, DEPTH, WIDE
            )  # fmt: skip
        _finish(out, bias, places, columns_at[None, :], is_there, is_column[None, :], total, BIASES, ADDS)


@triton.jit(do_not_specialize=["rows"])
def add_spans(
    parts,  # float32 [spans, rows, columns]
    bias,  # [columns]
    out,  # [rows, columns]
    rows,
    columns: tl.constexpr,
    spans: tl.constexpr,
    BLOCK: tl.constexpr,
    BIASES: tl.constexpr,
    ADDS: tl.constexpr,
):
    """The spans of a split product, added in order. Grid (rows, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < columns
    places = row * columns + at
    total = tl.zeros([BLOCK], tl.float32)
    for span in range(spans):
        start = tl.full([], span, tl.int64) * rows * columns
        total += tl.load(parts + start + places, mask=is_there, other=0.0)
    _finish(out, bias, places, at, is_there, is_there, total, BIASES, ADDS)
