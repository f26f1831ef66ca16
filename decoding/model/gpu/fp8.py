"""Products in e4m3, by torch's kernel: weights with a scale for each column of the result, inputs for each row.

Scales of weights are powers of two. A product of such a scale and a number of four bits is a number of sixteen, so the
model itself holds the rounded weights, as it does on a CPU, and packing them loses nothing more. e4m3 has exponents
of its own: but for the smallest numbers, such scales lose nothing against the best ones.

The output matrix stays as it is: its errors go straight into the draw, and where it is the embedding too both would
have to be held.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from decoding.kernels.gpu.layer import LARGEST
from decoding.model.gpu.products import Product
from decoding.model.gpu.steps import Rows, quantised
from decoding.model.linear import num_bytes
from decoding.model.quantize import QuantizeUnsupported, head_of
from decoding.model.replace_modules import make_fast

MULTIPLE = 16
"""Of both sides of a matrix, or torch has no product."""


def round_linears(model: nn.Module) -> None:
    """Give every linear but the output matrix its rounded weight. Raises QuantizeUnsupported."""
    for linear in _linears(model):
        if any(size % MULTIPLE for size in linear.weight.shape):
            raise QuantizeUnsupported("fp8", f"needs linears whose sides are multiples of {MULTIPLE}")
        values, scales = rounded(linear.weight.detach())
        weight = (values.float() * scales.unsqueeze(1)).to(linear.weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [N, K] -> e4m3 [N, K], float32 [N]
    """The nearest multiples of the smallest powers of two that are large enough."""
    fraction, exponent = torch.frexp(weight.float().abs().amax(dim=1) / LARGEST.value)
    exponent = torch.where(fraction == 0.5, exponent - 1, exponent)  # a power of two itself
    scales = torch.ldexp(torch.ones_like(fraction), torch.where(fraction == 0, 0, exponent))
    return (weight.float() / scales.unsqueeze(1)).to(torch.float8_e4m3fn), scales


def replace_linears(model: nn.Module) -> None:
    """By products, where fused layers have left any; norms by fused ones."""
    make_fast(model, Fp8Product)
    head = head_of(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, Fp8Product(child.weight, child.bias))


def _linears(model: nn.Module) -> list[Any]:
    head = head_of(model)
    return [module for module in model.modules() if type(module) is nn.Linear and module is not head]


class Fp8Product(Product):
    """Of a weight that `round_linears` has rounded."""

    quantises: ClassVar[bool] = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:  # [N, K], [N]
        values, scales = rounded(weight.detach())
        super().__init__(values, bias)
        self._scales = scales.unsqueeze(0)  # [1, N]
        self._dtype = weight.dtype

    @property
    def weight_bytes(self) -> int:
        return num_bytes(self.weight) + num_bytes(self._scales)

    def of(self, rows: Rows) -> torch.Tensor:
        x, scales = quantised(rows[0].contiguous()) if rows[1] is None else rows
        assert scales is not None
        return torch._scaled_mm(
            x, self.weight.T, scales.unsqueeze(1), self._scales, self.bias, out_dtype=self._dtype, use_fast_accum=True
        )

    def add_to(self, held: torch.Tensor, rows: Rows) -> torch.Tensor:
        return held.add_(self.of(rows))
