"""Which weights are quantised where; and int8's, rounded before a model is packed so that packing loses nothing more.

int8, on a CPU: each linear's weight as whole numbers up to 127 times one scale for each output column; the head too,
embeddings not. The model itself then holds the rounded weights in float32, and is what the packed one must agree with.
fp8 and int4, on a GPU: `torchao_weights.py`'s. Owns which machines can have which; the arithmetic is the kernels' and
torch's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from decoding import kernels
from decoding.kernels.rounding import round_weight

Quantize = Literal["none", "int8", "fp8", "int4"]

COMPUTES_IN: Mapping[Quantize, str] = {"int8": "float32", "fp8": "bfloat16", "int4": "bfloat16"}
CAPABILITIES: Mapping[Quantize, tuple[int, int]] = {"fp8": (8, 9), "int4": (8, 0)}  # that a GPU must have


class QuantizeUnsupported(ValueError):
    """Weights cannot be quantised here; says why."""

    def __init__(self, quantize: Quantize, reason: str) -> None:
        super().__init__(f"quantize = {quantize} {reason}")


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


def is_for_gpu(quantize: Quantize) -> bool:
    return quantize in CAPABILITIES


def check_machine(quantize: Quantize, device: torch.device, dtype: str, *, is_batch_invariant: bool = False) -> None:
    """Refuse what needs no look at the model."""
    if quantize == "none":
        return
    if dtype not in ("auto", COMPUTES_IN[quantize]):
        raise QuantizeUnsupported(quantize, f"computes in {COMPUTES_IN[quantize]}, not in {dtype}")
    if is_for_gpu(quantize):
        _check_gpu(quantize, device, is_batch_invariant=is_batch_invariant)
    elif device.type != "cpu":
        raise QuantizeUnsupported(quantize, "is for the CPU only")
    elif not kernels.available():
        raise QuantizeUnsupported(quantize, "needs compiled kernels: Linux, numba and a processor with FMA")


def _check_gpu(quantize: Quantize, device: torch.device, *, is_batch_invariant: bool) -> None:
    if device.type != "cuda":
        raise QuantizeUnsupported(quantize, "is for a GPU only, and there is none here")
    if is_batch_invariant:
        raise QuantizeUnsupported(quantize, "cannot be batch invariant: its products are chosen by the number of rows")
    if importlib.util.find_spec("torchao") is None:
        raise QuantizeUnsupported(quantize, "needs torchao: pip install polydecode[torchao]")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITIES[quantize]:
        needed = ".".join(map(str, CAPABILITIES[quantize]))
        raise QuantizeUnsupported(quantize, f"needs a GPU of compute capability {needed} or more")


def check_model(architecture: str, bare: list[str]) -> None:
    """bare: parameters that the model multiplies by itself."""
    if bare:
        reason = f"cannot hold {architecture}: it multiplies by weights outside linears ({bare[0]})"
        raise QuantizeUnsupported("int8", reason)
