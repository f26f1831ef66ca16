"""Static temperature: z / T. (T below 1e-5 is greedy and never gets here.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.logits.history import History
from decoding.logits.step import column


@dataclass(frozen=True, slots=True)
class Temperature:
    value: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Temperature], histories: Sequence[History]) -> torch.Tensor:
        return scores.div_(column([s.value for s in steps], scores))
