"""Which numbers a model is loaded in, and why: what `dtype = auto` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from decoding.contract.quantize import COMPUTES_IN, Quantize

NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Chosen:
    numbers: torch.dtype
    reason: str


def choose_dtype(dtype: str, device: torch.device, config: Any, quantize: Quantize = "none") -> Chosen:
    """auto: on CUDA the checkpoint's; on a CPU bfloat16 where it multiplies that natively, for then that is twice as
    fast as float32 where products decide, and reads the same bytes where memory does; elsewhere it is slower.
    """
    if quantize != "none":
        return Chosen(NUMBERS[COMPUTES_IN[device.type]], f"quantize = {quantize} computes in it")
    if dtype != "auto":
        return Chosen(NUMBERS[dtype], "as told")
    if device.type != "cpu":
        own = getattr(config, "dtype", None)
        if isinstance(own, torch.dtype):
            return Chosen(own, "auto: the checkpoint's")
        return Chosen(torch.bfloat16, "auto: the checkpoint says nothing")
    if cpu_multiplies_bfloat16():
        return Chosen(torch.bfloat16, "auto: this processor multiplies bfloat16 natively, twice as fast as float32")
    return Chosen(torch.float32, "auto: this processor has no bfloat16 products, and float32's are its fastest")


def cpu_multiplies_bfloat16() -> bool:
    """AVX512_BF16 or AMX."""
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)
