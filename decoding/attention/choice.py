"""Which attention backend a model gets, by its device and by what is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence

import torch

from decoding.attention.cpu import CPUAttention
from decoding.attention.interface import AttentionBackend
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.kernels import cpu as kernels

AttentionMaker = Callable[[Sequence[LayerShape], torch.device, torch.dtype], AttentionBackend]


def default_attention(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    if device.type == "cpu":
        return compiled_attention(shapes) or CPUAttention(shapes)
    return triton_attention(shapes, device, dtype) or ReferenceAttention(shapes, device=device, dtype=dtype)


def uniform_attention(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """As default_attention, and a query's bits do not depend on how it came."""
    if device.type == "cpu":
        return default_attention(shapes, device, dtype)
    found = triton_attention(shapes, device, dtype, is_uniform=True)
    if found is None:
        raise RuntimeError("batch_invariant takes the package triton and a C compiler")
    return found


def triton_attention(
    shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype, *, is_uniform: bool = False
) -> AttentionBackend | None:
    """None where triton is not installed or, for want of a C compiler, cannot launch anything."""
    if not has_triton():
        warnings.warn("attention is slow: it takes the package triton and a C compiler", stacklevel=2)
        return None
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - needs triton

    return TritonAttention(shapes, device=device, dtype=dtype, is_uniform=is_uniform)


def compiled_attention(shapes: Sequence[LayerShape]) -> AttentionBackend | None:
    """None where kernels cannot be compiled."""
    if not kernels.available():
        return None
    from decoding.attention.compiled import CompiledAttention  # noqa: PLC0415 - needs numba

    return CompiledAttention(shapes)


def has_triton() -> bool:
    """It is installed and finds a C compiler where it looks for one, without which it cannot launch anything."""
    has_compiler = "CC" in os.environ or any(shutil.which(name) for name in ("gcc", "clang"))
    return has_compiler and importlib.util.find_spec("triton") is not None
