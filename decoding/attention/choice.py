"""Which attention backend a model gets, by its device and by what is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from decoding.attention.cpu import CPUAttention
from decoding.attention.interface import PagedAttention
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.device import has_triton, missing_for_triton
from decoding.kernels import cpu as kernels

AttentionMaker = Callable[[Sequence[LayerShape], torch.device, torch.dtype], PagedAttention]


def default_attention(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> PagedAttention:
    """The fastest that works here and knows what the layers ask for."""
    has_bias = any(shape.has_bias for shape in shapes)
    kind = next(kind for kind in _kinds(device) if kind.knows_biases or not has_bias)
    if kind is ReferenceAttention and not has_bias:
        warnings.warn(f"attention is slow: {missing_for_triton()}", stacklevel=2)
    made: PagedAttention
    if device.type != "cpu":
        made = kind(shapes, device=device, dtype=dtype)
    elif kind.keeps_bfloat16 and dtype == torch.bfloat16:
        made = kind(shapes, dtype=dtype)
    else:
        made = kind(shapes)
    return made


def uniform_attention(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> PagedAttention:
    """As default_attention, and a query's bits do not depend on how it came."""
    if device.type == "cpu":
        return default_attention(shapes, device, dtype)
    if (missing := missing_for_triton()) is not None:
        raise RuntimeError(f"batch_invariant takes Triton: {missing}")
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - needs triton

    return TritonAttention(shapes, device=device, dtype=dtype, is_uniform=True)


def _kinds(device: torch.device) -> Iterator[Any]:
    """The backends that work here, the fastest first; those of a CPU need not be told where they are."""
    if device.type != "cpu":
        if has_triton():
            from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - needs triton

            yield TritonAttention
        yield ReferenceAttention
        return
    if kernels.available():
        from decoding.attention.compiled import CompiledAttention  # noqa: PLC0415 - needs numba

        yield CompiledAttention
    yield CPUAttention
