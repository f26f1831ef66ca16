"""Replaces a model's modules by ones whose rows come out the same bits in any batch on a GPU.

Its libraries choose kernels by the number of rows; ours go by the matrix alone.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from decoding.model.elementwise import FusedRMSNorm, fuse_norm
from decoding.model.gpu.products import BuildProduct, InvariantProduct
from decoding.model.gpu.steps import normalised
from decoding.model.linear import FIXED_ROWS, is_row_exact
from decoding.model.llama.parts import Norm
from decoding.model.replace_modules import KNOWN, MERGED_NAMES, bare_products, merge


class NotRowExact(Exception):
    """The model's rows cannot be made independent of each other here; says why."""


def make_batch_invariant(model: nn.Module) -> None:
    """Every product and every norm. Other operations compute a row, or an element, by itself whatever the batch.

    Raises NotRowExact for a model that multiplies by bare parameters, and where this GPU's products depend on a row's
    place all the same.
    """
    bare = next(bare_products(model, known=KNOWN), None)
    if bare is not None:
        raise NotRowExact(f"it multiplies by {bare} in its own code")
    build = tested_product()
    for parent in list(model.modules()):
        for names in MERGED_NAMES:
            merge(parent, names, build)
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, build(child.weight, child.bias))
            elif type(child) is Conv1D:
                setattr(parent, name, build(child.weight.T, child.bias))
            elif type(child).__name__.endswith("Norm"):
                setattr(parent, name, _norm(child))


def tested_product() -> BuildProduct:
    """Builds products, and tries each shape of matrix once."""
    tested: set[tuple[int, ...]] = set()

    def build(weight: torch.Tensor, bias: torch.Tensor | None) -> InvariantProduct:  # [N, K], [N]
        product = InvariantProduct(weight, bias)
        if weight.shape not in tested and not _is_exact(product):
            raise NotRowExact(f"products with a matrix of {tuple(weight.shape)} depend on the row's place here")
        tested.add(weight.shape)
        return product

    return build


def _is_exact(product: InvariantProduct) -> bool:
    """Whether rows come out the same from few and from so many that spans have no programs of their own."""
    weight = product.weight
    if not is_row_exact(product, weight.shape[1], weight.dtype, weight.device):
        return False
    x = torch.randn(FIXED_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    many = x.repeat(-(-product.unsplit_rows // FIXED_ROWS), 1)
    return torch.equal(product(many)[: len(x)], product(x))


def _norm(norm: nn.Module) -> nn.Module:
    fused = fuse_norm(norm)
    return RowNorm(fused) if isinstance(fused, FusedRMSNorm) else FixedRows(norm)


class RowNorm(nn.Module):
    """An RMS norm of which one program computes one row."""

    def __init__(self, norm: FusedRMSNorm) -> None:
        super().__init__()
        self._norm = Norm(norm.weight.detach(), norm.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., width] -> [..., width]
        out, _ = normalised(x.reshape(-1, x.shape[-1]).contiguous(), self._norm)
        return out.view(x.shape)


class FixedRows(nn.Module):
    """Runs a module on blocks of exactly FIXED_ROWS rows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, T, ...] -> [1, T, ...]
        rows = x[0]
        padding = rows.new_zeros(-len(rows) % FIXED_ROWS, *rows.shape[1:])
        blocks = torch.split(torch.cat([rows, padding]), FIXED_ROWS)
        return torch.cat([self.module(block[None]) for block in blocks], 1)[:, : len(rows)]
