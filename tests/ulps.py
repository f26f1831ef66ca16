"""Tolerances that follow from float32 arithmetic: steps between neighbouring numbers at the magnitude at hand."""

from __future__ import annotations

import math

import torch


def ulps(values: torch.Tensor, count: int) -> float:
    """`count` steps of float32 at the largest magnitude of the finite values: what as many roundings may add up to."""
    largest = float(values[values.isfinite()].abs().max())
    return count * torch.finfo(torch.float32).eps * 2.0 ** math.floor(math.log2(largest))
