"""What rounded weights are. Needs no compiled kernels.

int8: whole numbers up to 127, and one scale for each output column. int4: whole numbers 0 … 15 and, for each group of
32 inputs of a column, a scale and the least weight, as in GGML's Q4_1. Rounding what they stand for again gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LARGEST_WEIGHT = 127
LARGEST_INT4 = 15
GROUP = 32
INPUT_GROUP = 64  # how many of a row's numbers share a scale where they meet int8 weights, else GROUP
LARGEST_INPUT = 127


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [columns, depth] float32
    """Whole numbers up to LARGEST_WEIGHT, as float32 [columns, depth], and the scale of each column [columns, 1].

    Rounding their product with the scales again gives the same whole numbers.
    """
    scales = torch.linalg.vector_norm(weight, torch.inf, 1, keepdim=True) / LARGEST_WEIGHT
    return (weight / scales.clamp_min(torch.finfo(torch.float32).tiny)).round_(), scales


@dataclass(frozen=True, slots=True)
class Groups:
    """A weight is whole * scales + leasts."""

    whole: torch.Tensor  # [columns, groups, GROUP] float32, whole numbers
    scales: torch.Tensor  # [columns, groups, 1] float16
    leasts: torch.Tensor  # [columns, groups, 1] float16

    def weight(self) -> torch.Tensor:  # [columns, depth] float32
        return (self.whole * self.scales.float() + self.leasts.float()).flatten(1)


def round_groups(weight: torch.Tensor) -> Groups:  # [columns, depth] float32, depth a multiple of GROUP
    groups = weight.view(len(weight), -1, GROUP)
    leasts = groups.amin(2, keepdim=True).half()
    scales = ((groups.amax(2, keepdim=True) - leasts.float()) / LARGEST_INT4).clamp_min(0).half()
    whole = (groups - leasts.float()) / scales.float().clamp_min(torch.finfo(torch.float32).tiny)
    return Groups(whole.round().clamp(0, LARGEST_INT4) * (scales > 0), scales, leasts)
