"""Products on a GPU, x W^T + b, as modules: torch's own, and those of `kernels/gpu/products.py`.

Sizes of tiles go by the matrix alone. A product may add its result to what a tensor holds, which costs no launch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from triton import knobs

from decoding.kernels.gpu import products as kernels
from decoding.model.gpu.steps import Rows, power_of_two, warps
from decoding.model.linear import num_bytes

FEW_ROWS = 8
"""Up to here a product does nothing but read its matrix, and is left to the kernel that does that alone."""
ENOUGH_PROGRAMS = 256
"""About two for each of a GPU's multiprocessors: with as many, splitting by depth wins nothing."""
MOST_SPANS = 8
TAKEN_IN_TURN = 8  # tiles of rows that share the columns they read
SUMMED_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program computes, and how: rows x columns of the result, `depth` of the inputs at a time."""

    rows: int
    columns: int
    depth: int
    span: int  # of the depth, summed up before it is added to others
    num_warps: int
    num_stages: int

    def is_split(self, rows: int, weight: torch.Tensor) -> bool:  # [columns, depth]
        """Whether spans have programs of their own."""
        columns, depth = weight.shape
        return depth > self.span and -(-rows // self.rows) * -(-columns // self.columns) < ENOUGH_PROGRAMS


def few_rows_tile(weight: torch.Tensor) -> Tile:  # [columns, depth]
    """One program for a strip of columns; narrow strips, so that there are enough of them to read with."""
    columns, depth = weight.shape
    wide = columns >= 32 * ENOUGH_PROGRAMS
    return Tile(16, 32, 256, depth, 4, 4) if wide else Tile(16, 16, 256, depth, 4, 5)


def invariant_tile(weight: torch.Tensor) -> Tile:  # [columns, depth]
    """The same for one row and for thousands."""
    columns, depth = weight.shape
    width = 128 if columns >= 4096 else 64
    step = 64 if weight.element_size() <= 2 else 32
    spans = min(MOST_SPANS, -(-ENOUGH_PROGRAMS * width // columns), -(-depth // (4 * step)))
    span = -(-depth // (max(1, spans) * step)) * step
    return Tile(64, width, step, span, 4, 4)


class Product(nn.Module, ABC):
    """x W^T + b. Stands where a linear was, and in a fused layer."""

    quantises: ClassVar[bool] = False
    """It takes rows of eight bits with a scale for each."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:  # [N, K], [N]
        super().__init__()
        self.weight = weight.detach().contiguous()
        self.bias = None if bias is None else bias.detach()

    @property
    def weight_bytes(self) -> int:
        return num_bytes(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        flat = x.reshape(-1, x.shape[-1])
        out = self.of((flat, None)) if len(flat) else x.new_empty(0, len(self.weight))  # an expert without tokens
        return out.view(*x.shape[:-1], len(self.weight))

    @abstractmethod
    def of(self, rows: Rows) -> torch.Tensor:  # [T, K] -> [T, N]
        """The product."""

    @abstractmethod
    def add_to(self, held: torch.Tensor, rows: Rows) -> torch.Tensor:  # [T, N], [T, K] -> [T, N]
        """held + the product; what `held` held is lost."""


BuildProduct = Callable[[torch.Tensor, torch.Tensor | None], Product]
"""Of weight [N, K] and bias [N]."""


class PlainProduct(Product):
    """torch's, but for a few rows."""

    def of(self, rows: Rows) -> torch.Tensor:
        x, _ = rows
        if _is_for_few(x):
            return multiply(x, self.weight, self.bias, few_rows_tile(self.weight))
        return F.linear(x, self.weight, self.bias)

    def add_to(self, held: torch.Tensor, rows: Rows) -> torch.Tensor:
        x, _ = rows
        if _is_for_few(x):
            return multiply(x, self.weight, self.bias, few_rows_tile(self.weight), held)
        if self.bias is not None:
            return held.add_(F.linear(x, self.weight, self.bias))
        return held.addmm_(x, self.weight.T)


def _is_for_few(x: torch.Tensor) -> bool:  # [T, K]
    return len(x) <= FEW_ROWS and x.dtype.itemsize == 2


class InvariantProduct(Product):
    """A row's result is the same bits alone and in any batch."""

    @property
    def unsplit_rows(self) -> int:
        """The least number of rows at which one program walks all spans."""
        tile, rows = invariant_tile(self.weight), 1
        while tile.is_split(rows, self.weight):
            rows += tile.rows
        return rows

    def of(self, rows: Rows) -> torch.Tensor:
        return multiply(rows[0], self.weight, self.bias, invariant_tile(self.weight))

    def add_to(self, held: torch.Tensor, rows: Rows) -> torch.Tensor:
        return multiply(rows[0], self.weight, self.bias, invariant_tile(self.weight), held)


def multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile, held: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b, [T, K] and [N, K] -> [T, N]; added to `held` [T, N] where that is given."""
    x = x.contiguous()
    rows, (columns, depth) = len(x), weight.shape
    out = x.new_empty(rows, columns) if held is None else held
    tiles, spans = -(-rows // tile.rows) * -(-columns // tile.columns), -(-depth // tile.span)
    is_split = tile.is_split(rows, weight)
    parts = torch.empty(spans, rows, columns, dtype=torch.float32, device=x.device) if is_split else out
    added, ends = out if bias is None else bias, (bias is not None, held is not None)
    kernels.multiply[(tiles, spans if is_split else 1)](
        x, weight, added, out, parts, rows, columns, depth, tile.rows, tile.columns, tile.depth, tile.span,
        TAKEN_IN_TURN, *ends, is_split, knobs.runtime.interpret,
        num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
    if is_split:
        block = min(SUMMED_AT_ONCE, power_of_two(columns))
        kernels.add_spans[(rows, -(-columns // block))](
            parts, added, out, rows, columns, spans, block, *ends, num_warps=warps(block), enable_fp_fusion=False
        )  # fmt: skip
    return out
