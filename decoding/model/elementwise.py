"""Norms and activations computed so that an element's result does not depend on the size of the batch.

torch's CPU loops compute whole vectors with one approximation of exp and what is left over with another, and where a
thread's share ends depends on the number of elements. Owns the shapes that leave nothing over; knows no models.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

# at::internal::GRAIN_SIZE: up to here one thread does all.
GRAIN = 32768
# Two of the widest vectors torch has, in the narrowest dtype: a share of this many elements leaves nothing over.
VECTOR = 64

Elementwise = Callable[[torch.Tensor], torch.Tensor]


def row_exact(function: Elementwise, x: torch.Tensor) -> torch.Tensor:  # [..., width] -> [..., width]
    """function(x), the same for a row whatever rows surround it."""
    width = x.shape[-1]
    if width % VECTOR:
        return row_exact(function, F.pad(x, (0, -width % VECTOR)))[..., :width]
    if x.numel() <= GRAIN or _share(x.numel()) % VECTOR == 0:
        return function(x)
    rows = x.reshape(-1, width)
    size = max(1, GRAIN // width)
    return torch.cat([function(rows[start : start + size]) for start in range(0, len(rows), size)]).view(x.shape)


def _share(count: int) -> int:
    """How many elements each thread gets."""
    threads = min(torch.get_num_threads(), -(-count // GRAIN))
    return -(-count // threads)


class RowExactActivation(nn.Module):
    """Wraps an activation module."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., width] -> [..., width]
        return row_exact(self.activation, x)


class FusedRMSNorm(nn.Module):
    """RMSNorm as one operation instead of six."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:  # [hidden]
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., hidden] -> [..., hidden]
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def fuse_norm(norm: nn.Module) -> nn.Module | None:
    """A fused norm that computes what `norm` computes (bitwise in float32), or None."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, len(weight), generator=generator).to(weight)
    expected = norm(x)
    # Gemma's norms multiply by 1 + weight.
    for scale in (weight, 1 + weight):
        fused = FusedRMSNorm(scale, eps)
        if _is_same(fused(x), expected):
            return fused
    return None


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.dtype == torch.float32:
        return torch.equal(found, expected)
    # Half precision: the model's own code rounds twice where the fused one rounds once.
    return torch.allclose(found, expected, rtol=2 * torch.finfo(found.dtype).eps, atol=0)
