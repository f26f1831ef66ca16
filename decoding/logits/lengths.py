"""Steps that move EOS with the length of the output: eos_penalty and exponential_decay_length_penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.context import Context
from decoding.logits.history import NO_IDS
from decoding.logits.step import column, flat_index, shift

_HIGHEST = 1e30  # EOS is certain long before; an infinite score would make the row unreadable


@dataclass(frozen=True, slots=True, eq=False)
class EosPenalty:
    """The length penalty of penalty decoding (Zhu et al. 2023, arXiv 2310.14971), which lowers a too early EOS.

    z_eos -= strength * (until - t) while t < until, t counting output tokens. (Neither the paper's text nor its code
    fixes the form; this one is ours.)
    """

    strength: float
    until: int
    eos_ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[EosPenalty], context: Context) -> torch.Tensor:
        missing = [max(s.until - h.num_output, 0) for s, h in zip(steps, context.histories, strict=True)]
        amounts = [np.full(len(s.eos_ids), -s.strength * m) for s, m in zip(steps, missing, strict=True)]
        return shift(scores, [s.eos_ids for s in steps], amounts)


@dataclass(frozen=True, slots=True, eq=False)
class ExponentialDecay:
    """Hugging Face's exponential_decay_length_penalty: z_eos += |z_eos| * (factor ** (t - start) - 1) while t > start.

    t counts output tokens. An excluded EOS stays excluded. (Hugging Face makes it NaN.)
    """

    start: int
    factor: float
    eos_ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[ExponentialDecay], context: Context) -> torch.Tensor:
        late = [h.num_output - s.start for s, h in zip(steps, context.histories, strict=True)]
        rows, ids = flat_index([s.eos_ids if t > 0 else NO_IDS for s, t in zip(steps, late, strict=True)], scores)
        growth = [_growth(s.factor, max(t, 0)) for s, t in zip(steps, late, strict=True)]
        z = scores[rows, ids]
        raised = z + z.abs() * column(growth, scores).squeeze(1)[rows]
        scores[rows, ids] = torch.where(z.isfinite(), raised.clamp(max=_HIGHEST), z)
        return scores


def _growth(factor: float, times: int) -> float:
    """factor ** times - 1, held below what float32 can carry."""
    return math.exp(min(times * math.log(factor), math.log(_HIGHEST))) - 1
