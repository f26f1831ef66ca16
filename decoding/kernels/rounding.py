"""What an int8 weight is: whole numbers up to 127, and one scale for each output column. Needs no compiled kernels."""

from __future__ import annotations

import torch

LARGEST_WEIGHT = 127


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [columns, depth] float32
    """Whole numbers up to LARGEST_WEIGHT, as float32 [columns, depth], and the scale of each column [columns, 1].

    Rounding their product with the scales again gives the same whole numbers.
    """
    scales = weight.abs().amax(1, keepdim=True) / LARGEST_WEIGHT
    return (weight / scales.clamp_min(torch.finfo(torch.float32).tiny)).round(), scales
