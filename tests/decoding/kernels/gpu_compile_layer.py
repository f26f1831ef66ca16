"""`python -m tests.decoding.kernels.gpu_compile_layer CAPABILITY`: as gpu_compile, of layers and products.

CAPABILITY: 80, 89, 90 or 100.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from triton.runtime import driver

from decoding.attention.pages import LayerShape, Pages
from decoding.model.gpu import products, steps
from decoding.model.llama.parts import Norm
from decoding.topk.draws import triton_draws
from decoding.topk.nucleus import cut_nucleus
from tests.decoding.kernels.gpu_compile import Driver, compile_only

CPU = torch.device("cpu")
ROW_COUNTS = (1, 2, 7, 16, 2000)


def described(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    product = next((name for name in ("tcgen05.mma", "wgmma.mma", "mma.sync") if name in ptx), None)
    return {"shared": kernel.metadata.shared, "product": product, "copies": ptx.count("cp.async.cg")}


def launch_quantised(hidden: int, intermediate: int, dtype: torch.dtype) -> None:
    """Of those the ones that leave eight bits."""
    norm = Norm(torch.zeros(hidden), 1e-5)
    for tokens in ROW_COUNTS:
        x = torch.zeros(tokens, hidden, dtype=dtype)
        steps.normalised(x, norm, quantises=True)
        steps.added_and_normalised(x, x, norm, quantises=True)
        steps.activated(torch.zeros(tokens, 2 * intermediate, dtype=dtype), quantises=True)
        steps.quantised(x)


def launch_layers(hidden: int, shape: LayerShape, intermediate: int, dtype: torch.dtype) -> None:
    """A layer's small steps, for several numbers of tokens."""
    pages = Pages([shape], 16, dtype, CPU)
    pages.allocate(2)
    norm, head_norm = Norm(torch.zeros(hidden), 1e-5), Norm(torch.zeros(shape.head_dim), 1e-6)
    row = (shape.heads + shape.kv_heads) * shape.head_dim + shape.kv_heads * shape.v_head_dim
    for tokens in ROW_COUNTS:
        x = torch.zeros(tokens, hidden, dtype=dtype)
        steps.normalised(x, norm)
        steps.added_and_normalised(x, x, norm)
        angles = torch.zeros(1, tokens, shape.head_dim, dtype=dtype)
        for norms in (None, (head_norm, head_norm)):
            placing = steps.Placing(pages, 0, torch.zeros(tokens, dtype=torch.int64), norms)
            steps.placed(torch.zeros(tokens, row, dtype=dtype), placing, (angles, angles))
        steps.activated(torch.zeros(tokens, 2 * intermediate, dtype=dtype))


def tiles(weight: torch.Tensor) -> Iterator[products.Tile]:
    yield products.invariant_tile(weight)
    if weight.element_size() == 2:
        yield products.few_rows_tile(weight)


def launch_products(columns: int, depth: int, dtype: torch.dtype) -> None:
    weight = torch.zeros(columns, depth, dtype=dtype)
    for tile in tiles(weight):
        for rows in ROW_COUNTS if tile.rows > 16 else (1, 2, 8):
            products.multiply(torch.zeros(rows, depth, dtype=dtype), weight, None, tile)


def launch_draws(vocab: int) -> None:
    """Of several numbers of rows, which put tables at odd places."""
    for rows in (1, 2, 7):
        scores = torch.zeros(rows, vocab)
        triton_draws(scores, [0] * rows, np.zeros(rows), [False] * rows)
        cut_nucleus(scores, scores, torch.ones(rows, 1), torch.ones(rows, 1))


def main(capability: int) -> None:
    compile_only(described, capability)
    driver.set_active(Driver(capability))
    launch_layers(4096, LayerShape(32, 8, 128, 128), 14336, torch.bfloat16)
    if capability >= 89:  # before there was no e4m3
        launch_quantised(4096, 14336, torch.bfloat16)
    launch_products(4096, 14336, torch.bfloat16)
    launch_products(28672, 4096, torch.bfloat16)
    launch_products(1024, 1024, torch.float32)
    launch_draws(128256)
    launch_draws(50257)


if __name__ == "__main__":
    main(int(sys.argv[1]))
