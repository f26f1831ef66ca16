"""An RMSNorm as its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor  # [width]
    eps: float
