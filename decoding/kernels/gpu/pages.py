"""Triton kernel that copies whole pages, each of every layer."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_pages"], do_not_specialize_on_alignment=["pairs"])
def copy(
    pages,  # [layers, num_pages, SIZE]
    pairs,  # int64 [pairs, 2]   from which page to which
    num_pages,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """No page that is read is written. Grid (pairs, layers)."""
    pair, layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    source = pages + (layer * num_pages + tl.load(pairs + 2 * pair)) * SIZE
    destination = pages + (layer * num_pages + tl.load(pairs + 2 * pair + 1)) * SIZE
    for start in range(0, SIZE, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(destination + at, tl.load(source + at, mask=at < SIZE), mask=at < SIZE)
