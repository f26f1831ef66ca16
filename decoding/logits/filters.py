"""Steps that cut the tail of the distribution: top-k, top-p, min-p. Excluded scores become -inf.

A full sort of the vocabulary is what makes samplers slow, so top-p looks at the best few first and sorts only the rows
whose mass those do not cover. Which way a row goes depends on that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.logits.context import Context
from decoding.logits.ranks import is_among_best, kth_best
from decoding.logits.step import EXCLUDED, column

FEW = 256


@dataclass(frozen=True, slots=True)
class TopK:
    """Fan et al. 2018: keep the k best and whatever equals the k-th (Hugging Face's rule)."""

    k: int

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[TopK], context: Context) -> torch.Tensor:
        return scores.masked_fill_(scores < kth_best(scores, [s.k for s in steps]), EXCLUDED)


@dataclass(frozen=True, slots=True)
class TopP:
    """Holtzman et al. 2020 (arXiv 1904.09751): the smallest set of best tokens with mass >= p; at least `keep`."""

    p: float
    keep: int = 1

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[TopP], context: Context) -> torch.Tensor:
        p, keep = column([s.p for s in steps], scores), column([s.keep for s in steps], scores)
        probabilities = scores.softmax(dim=-1)
        best, ids = scores.topk(min(FEW, scores.shape[-1]), dim=-1)  # [rows, few], descending
        num_kept = _num_kept(probabilities.gather(1, ids), p, keep)
        threshold = best.gather(1, num_kept.clamp(max=best.shape[1]) - 1)
        following = best.gather(1, num_kept.clamp(max=best.shape[1] - 1))
        unclear = where_not((num_kept < best.shape[1]) & (following < threshold))
        exact = _cut_by_full_sort(scores[unclear], probabilities[unclear], p[unclear], keep[unclear])
        scores.masked_fill_(scores < threshold, EXCLUDED)
        if unclear:
            scores[unclear] = exact
        return scores


def where_not(is_clear: torch.Tensor) -> list[int]:
    """The rows of [rows, 1] for which the best few did not suffice. On an accelerator the host waits here."""
    return [int(i) for i in (~is_clear).squeeze(1).nonzero().flatten().tolist()]


def _num_kept(descending: torch.Tensor, p: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """How many of the best probabilities [rows, n] stay, [rows, 1]: one does while the mass before it is below p."""
    mass = descending.double().cumsum(dim=-1)
    return (1 + (mass[:, :-1] < p).sum(dim=-1, keepdim=True)).maximum(keep.long())


def _cut_by_full_sort(
    scores: torch.Tensor, probabilities: torch.Tensor, p: torch.Tensor, keep: torch.Tensor
) -> torch.Tensor:
    """Top-p over the whole vocabulary; among equals at the border the lower ids stay. (Hugging Face sorts unstably.)"""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    num_kept = _num_kept(probabilities.gather(1, order), p, keep)
    is_cut = torch.arange(scores.shape[-1], device=scores.device) >= num_kept
    return scores.masked_fill(is_cut.scatter(1, order, is_cut), EXCLUDED)


@dataclass(frozen=True, slots=True)
class MinP:
    """Nguyen et al. 2024 (arXiv 2407.01082): keep p_i >= min_p * max p, that is z_i >= max z + ln(min_p).

    At least `keep` stay.
    """

    min_p: float
    keep: int = 1

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[MinP], context: Context) -> torch.Tensor:
        floor = scores.amax(dim=-1, keepdim=True) + column([math.log(s.min_p) for s in steps], scores)
        is_cut = scores < floor
        keep = [s.keep for s in steps]
        if max(keep) > 1:
            is_cut &= ~is_among_best(scores, keep)
        return scores.masked_fill_(is_cut, EXCLUDED)
