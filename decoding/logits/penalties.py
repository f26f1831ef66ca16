"""Steps that look back: repetition, frequency and presence penalties, and no repeated n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.contract.params import PenaltyScope
from decoding.logits.context import Context
from decoding.logits.history import History, distinct
from decoding.logits.step import column, exclude, flat_index, shift


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
        counted = [_counts(h.output_ids, scores.shape[-1]) for h in context.histories]
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
        rows = zip(steps, context.histories, strict=True)
        return exclude(scores, [_followers(h, s.n - 1, scores.shape[-1]) for s, h in rows])


def _followers(history: History, length: int, vocab: int) -> np.ndarray:
    """What followed each earlier occurrence of the last `length` ids."""
    ids = history.ids
    return distinct(ids[1:][history.matched >= length] if length and len(ids) else ids, vocab)


def _counts(ids: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids, and how often each occurs."""
    found = distinct(ids, vocab)
    place = np.empty(vocab, dtype=np.int64)  # of an id in `found`
    place[found] = np.arange(len(found))
    return found, np.bincount(place[ids], minlength=len(found))
