"""Weights rounded to eight bits before a model is packed, so that what is packed loses nothing more.

int8: each linear's weight as whole numbers up to 127 times one scale for each output column; the head too, embeddings
not. The model itself then holds the rounded weights in float32, and is what the packed one must agree with. Owns which
models can have it; the arithmetic over rounded weights is the kernels'.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from decoding import kernels
from decoding.kernels.rounding import round_weight

Quantize = Literal["none", "int8"]


class QuantizeUnsupported(ValueError):
    """Weights cannot be quantised here; says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"quantize = int8 {reason}")


def round_linears(model: nn.Module) -> None:
    """Give every linear its rounded weight. A head that shares the embedding's gets one of its own."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(_rounded(module.weight), requires_grad=False)
        elif type(module) is Conv1D:
            module.weight = nn.Parameter(_rounded(module.weight.T).T, requires_grad=False)


def _rounded(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth]
    whole, scales = round_weight(weight.detach())
    return whole * scales


def check_machine(quantize: Quantize, device: torch.device, dtype: str) -> None:
    """Refuse what needs no look at the model."""
    if quantize == "int8":
        if device.type != "cpu":
            raise QuantizeUnsupported("is for the CPU only")
        if dtype not in ("auto", "float32"):
            raise QuantizeUnsupported(f"computes in float32, not in {dtype}")
        if not kernels.available():
            raise QuantizeUnsupported("needs compiled kernels: Linux, numba and a processor with FMA")


def check_model(architecture: str, bare: list[str]) -> None:
    """bare: parameters that the model multiplies by itself."""
    if bare:
        raise QuantizeUnsupported(f"cannot hold {architecture}: it multiplies by weights outside linears ({bare[0]})")
