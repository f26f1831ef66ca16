"""What an int8 weight is: whole numbers up to 127, and one scale for each output column. Needs no compiled kernels."""

from __future__ import annotations

import torch

LARGEST_WEIGHT = 127
LARGEST_INPUT = 32767


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [columns, depth] float32
    """Whole numbers up to LARGEST_WEIGHT, as float32 [columns, depth], and the scale of each column [columns, 1].

    Rounding their product with the scales again gives the same whole numbers.
    """
    scales = weight.abs().amax(1, keepdim=True) / LARGEST_WEIGHT
    return (weight / scales.clamp_min(torch.finfo(torch.float32).tiny)).round(), scales


def input_limit(whole: torch.Tensor) -> int:  # [columns, depth]
    """How large whole numbers may be, for all sums of their products with the weight's to fit into int32."""
    return min(LARGEST_INPUT, (2**31 - 1) // max(1, int(whole.abs().sum(1, dtype=torch.float64).max())))
