"""Which weights are quantised where; on a CPU, rounded before a model is packed, so that packing loses nothing more.

int8: each linear's weight as whole numbers up to 127 times one scale for each output column; the head too, embeddings
not. int4: whole numbers 0 … 15 with a scale and a least weight for each 32 inputs of a column, those of GGML's Q4_1;
the head stays int8, for its rounding meets every logit directly, and a file in Q4_1 keeps eight bits there, too. The
model itself then holds the rounded weights in float32, and is what the packed one must agree with.
On a GPU, fp8: `gpu/fp8.py`'s; int4: `torchao_weights.py`'s. The arithmetic is the kernels' and torch's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from decoding.contract.quantize import COMPUTES_IN, QUANTIZED_ON, Quantize, Rounding
from decoding.device import has_triton
from decoding.kernels import cpu as kernels
from decoding.kernels.cpu.rounding import GROUP, round_groups, round_weight

ROUNDED = QUANTIZED_ON["cpu"]
CAPABILITIES: Mapping[Quantize, tuple[int, int]] = {"fp8": (8, 9), "int4": (8, 0)}  # that a GPU must have


class QuantizeUnsupported(ValueError):
    """Weights cannot be quantised here; says why."""

    def __init__(self, quantize: Rounding, reason: str) -> None:
        super().__init__(f"quantize = {quantize} {reason}")


def head_of(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]


def of_module(rounding: Rounding, module: nn.Module, head: nn.Module | None) -> Rounding:
    """How this linear of a model is rounded."""
    return "int8" if rounding == "int4" and module is head else rounding


def round_linears(model: nn.Module, rounding: Rounding) -> None:
    """Give every linear its rounded weight. A head that shares the embedding's gets one of its own."""
    head = head_of(model)
    for module in model.modules():
        its = of_module(rounding, module, head)
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(_rounded(module.weight, its), requires_grad=False)
        elif type(module) is Conv1D:
            module.weight = nn.Parameter(_rounded(module.weight.T, its).T, requires_grad=False)


def _rounded(weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:  # [columns, depth]
    weight = weight.detach()
    if rounding == "int4":
        depth = weight.shape[1]
        padded = nn.functional.pad(weight, (0, -depth % GROUP))
        return round_groups(padded).weight()[:, :depth].contiguous()
    whole, scales = round_weight(weight)
    return whole * scales


def check_machine(quantize: Quantize, device: torch.device, dtype: str, *, is_batch_invariant: bool = False) -> None:
    """Refuse what needs no look at the model."""
    if quantize == "none":
        return
    if device.type == "cuda":
        _check_gpu(quantize, device, is_batch_invariant=is_batch_invariant)
    elif quantize not in ROUNDED:
        raise QuantizeUnsupported(quantize, "is for a GPU only, and there is none here")
    elif not kernels.available():
        raise QuantizeUnsupported(quantize, "needs compiled kernels: Linux, numba and a processor with FMA")
    if dtype not in ("auto", COMPUTES_IN[device.type]):
        raise QuantizeUnsupported(quantize, f"computes in {COMPUTES_IN[device.type]}, not in {dtype}")


def _check_gpu(quantize: Quantize, device: torch.device, *, is_batch_invariant: bool) -> None:
    if quantize not in CAPABILITIES:
        raise QuantizeUnsupported(quantize, "is for the CPU only")
    if is_batch_invariant:
        raise QuantizeUnsupported(quantize, "cannot be batch invariant: its products are chosen by the number of rows")
    if quantize == "fp8" and not has_triton():
        raise QuantizeUnsupported(quantize, "needs the package triton and a C compiler")
    if quantize == "int4" and importlib.util.find_spec("torchao") is None:
        raise QuantizeUnsupported(quantize, "needs torchao: pip install polydecode[torchao]")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITIES[quantize]:
        needed = ".".join(map(str, CAPABILITIES[quantize]))
        raise QuantizeUnsupported(quantize, f"needs a GPU of compute capability {needed} or more")


def check_model(rounding: Rounding, architecture: str, bare: list[str]) -> None:
    """bare: parameters that the model multiplies by itself."""
    if bare:
        reason = f"cannot hold {architecture}: it multiplies by weights outside linears ({bare[0]})"
        raise QuantizeUnsupported(rounding, reason)
