"""Steps that look back: repetition, frequency and presence penalties, and no repeated n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.context import Context
from decoding.logits.history import NO_IDS, History
from decoding.logits.step import column, exclude, flat_index, shift
from decoding.params import PenaltyScope


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Keskar et al. 2019 (arXiv 1909.05858), sign-aware: x < 0 -> x * theta, else x / theta, once per id seen.

    Sees prompt and output as Hugging Face and vLLM do, or the output only; with a window the last ids of that, which is
    the forgetting of penalty decoding (Zhu et al. 2023, arXiv 2310.14971).
    """

    theta: float
    scope: PenaltyScope = "prompt+output"
    window: int = 0

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[RepetitionPenalty], context: Context) -> torch.Tensor:
        rows, ids = flat_index([s._seen(h) for s, h in zip(steps, context.histories, strict=True)], scores)
        theta = column([s.theta for s in steps], scores).squeeze(1)[rows]
        seen = scores[rows, ids]
        # An id that occurs twice is written twice with the same value: both are made from the untouched score.
        scores[rows, ids] = torch.where(seen < 0, seen * theta, seen / theta)
        return scores

    def _seen(self, history: History) -> np.ndarray:
        return history.within(self.scope)[-self.window :]


@dataclass(frozen=True, slots=True)
class CountPenalty:
    """OpenAI's frequency and presence penalties.

    z_i -= frequency * count(i) + presence * [count(i) > 0], output only.
    """

    frequency: float
    presence: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[CountPenalty], context: Context) -> torch.Tensor:
        counted = [np.unique(h.output_ids, return_counts=True) for h in context.histories]
        amounts = [-(s.frequency * n + s.presence) for s, (_, n) in zip(steps, counted, strict=True)]
        return shift(scores, [ids for ids, _ in counted], amounts)


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """Paulus et al. 2017 (arXiv 1705.04304): no n-gram of prompt and output may occur twice.

    Every id that once followed the last n - 1 ids is excluded.
    """

    n: int

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[NoRepeatNgram], context: Context) -> torch.Tensor:
        return exclude(scores, [_followers(h.ids, s.n - 1) for s, h in zip(steps, context.histories, strict=True)])


def _followers(ids: np.ndarray, length: int) -> np.ndarray:
    """What followed each earlier occurrence of the last `length` ids."""
    if len(ids) <= length:
        return NO_IDS
    ends = np.arange(length, len(ids))  # where a follower may stand
    for back in range(1, length + 1):
        ends = ends[ids[ends - back] == ids[-back]]
    return ids[ends]
