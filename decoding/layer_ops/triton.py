"""The launches of the Triton kernels (`triton_kernels.py`) on a GPU; under TRITON_INTERPRET=1 on the CPU, for tests."""

from __future__ import annotations

import torch

from decoding.attention.pages import LayerShape
from decoding.layer_ops import triton_kernels as kernels
from decoding.layer_ops.norm import Norm

BLOCK = 1024
"""Values that a program of the gated activation computes."""


def norm(x: torch.Tensor, by: Norm) -> torch.Tensor:  # [..., width] -> [..., width]
    x = x.contiguous()
    normed = torch.empty_like(x)
    _add_norm(x, x, x, normed, by, adds=False)
    return normed


def add_norm(x: torch.Tensor, y: torch.Tensor, by: Norm) -> tuple[torch.Tensor, torch.Tensor]:  # [..., width] all
    """x + y, and that normed."""
    x, y = x.contiguous(), y.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    _add_norm(x, y, total, normed, by, adds=True)
    return total, normed


def _add_norm(
    x: torch.Tensor, y: torch.Tensor, total: torch.Tensor, normed: torch.Tensor, by: Norm, *, adds: bool
) -> None:
    width = x.shape[-1]
    padded = _power_of_two(width)
    kernels.add_norm[(x.numel() // width,)](
        x, y, by.weight, total, normed, by.eps, width, padded, adds,
        num_warps=min(16, max(1, padded // 512)), enable_fp_fusion=False,
    )  # fmt: skip


def rotate(
    heads: torch.Tensor,  # [..., row]
    shape: LayerShape,
    angles: tuple[torch.Tensor, torch.Tensor] | None,  # cosines and sines, [..., dim] each
    norms: tuple[Norm, Norm] | None,
) -> None:
    """Norm (where there are norms) and rotate (where there are angles) the query and key heads, in place."""
    row, dim = heads.shape[-1], shape.head_dim
    cos, sin = (heads, heads) if angles is None else (part.contiguous() for part in angles)
    query_norm, key_norm = norms or (None, None)
    kernels.rotate[(heads.numel() // row, shape.heads + shape.kv_heads)](
        heads, cos, sin,
        heads if query_norm is None else query_norm.weight, heads if key_norm is None else key_norm.weight,
        0.0 if query_norm is None else query_norm.eps, shape.heads,
        row, dim, _power_of_two(dim // 2), norms is not None, angles is not None,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


def silu_product(both: torch.Tensor) -> torch.Tensor:  # [..., 2 * width] -> [..., width]
    """silu of the first half times the second."""
    both = both.contiguous()
    width = both.shape[-1] // 2
    out = both.new_empty(*both.shape[:-1], width)
    kernels.silu_product[(both.numel() // (2 * width), -(-width // BLOCK))](
        both, out, width, BLOCK, enable_fp_fusion=False
    )
    return out


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
