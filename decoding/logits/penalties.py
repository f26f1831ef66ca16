"""Steps that look back: repetition, frequency and presence penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.history import History
from decoding.logits.step import flat_index


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Keskar et al. 2019 (arXiv 1909.05858), sign-aware: x < 0 -> x * theta, else x / theta, once per id seen.

    Sees prompt and output, as Hugging Face and vLLM do.
    """

    theta: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[RepetitionPenalty], histories: Sequence[History]) -> torch.Tensor:
        rows, ids = flat_index([h.ids for h in histories], scores)
        theta = torch.tensor([s.theta for s in steps], dtype=torch.float32, device=scores.device)[rows]
        seen = scores[rows, ids]
        # An id that occurs twice is written twice with the same value: both are made from the untouched score.
        scores[rows, ids] = torch.where(seen < 0, seen * theta, seen / theta)
        return scores


@dataclass(frozen=True, slots=True)
class CountPenalty:
    """OpenAI's frequency and presence penalties.

    Z_i -= frequency * count(i) + presence * [count(i) > 0], output only.
    """

    frequency: float
    presence: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[CountPenalty], histories: Sequence[History]) -> torch.Tensor:
        counted = [np.unique(h.output_ids, return_counts=True) for h in histories]
        amounts = [s.frequency * counts + s.presence for s, (_, counts) in zip(steps, counted, strict=True)]
        index = flat_index([ids for ids, _ in counted], scores)
        scores[index] -= torch.from_numpy(np.concatenate(amounts).astype(np.float32)).to(scores.device)
        return scores
