"""Steps that cut the tail of the distribution: top-k, top-p, min-p. Excluded scores become -inf.

A full sort of the vocabulary is what makes samplers slow, so top-p looks at the best few first and sorts only the rows
whose mass those do not cover. Which way a row goes depends on that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decoding.logits.history import History
from decoding.logits.step import EXCLUDED, column

_FEW = 256


@dataclass(frozen=True, slots=True)
class TopK:
    """Fan et al. 2018: keep the k best and whatever equals the k-th (Hugging Face's rule)."""

    k: int

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[TopK], histories: Sequence[History]) -> torch.Tensor:
        ks = torch.tensor([min(s.k, scores.shape[-1]) for s in steps], device=scores.device)
        best = scores.topk(int(ks.max()), dim=-1).values  # [rows, largest k]
        kth = best.gather(1, (ks - 1).unsqueeze(1))
        return scores.masked_fill_(scores < kth, EXCLUDED)


@dataclass(frozen=True, slots=True)
class TopP:
    """Holtzman et al. 2020 (arXiv 1904.09751): the smallest set of best tokens with mass >= p; never empty."""

    p: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[TopP], histories: Sequence[History]) -> torch.Tensor:
        p = column([s.p for s in steps], scores)
        width = min(_FEW, scores.shape[-1])
        best = scores.topk(width, dim=-1).values  # [rows, width], descending
        num_kept = _num_kept(best, scores.logsumexp(dim=-1, keepdim=True), p)
        threshold = best.gather(1, num_kept - 1)
        is_cut_clean = (num_kept < width) & (best.gather(1, num_kept.clamp(max=width - 1)) < threshold)
        unclear = (~is_cut_clean).squeeze(1).nonzero().flatten().tolist()
        exact = _cut_by_full_sort(scores[unclear], p[unclear]) if unclear else None
        scores.masked_fill_(scores < threshold, EXCLUDED)
        if exact is not None:
            scores[unclear] = exact
        return scores


def _num_kept(descending: torch.Tensor, normaliser: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """How many of the best scores [rows, n] stay, [rows, 1]: a token does while the mass before it is below p."""
    mass = torch.exp(descending - normaliser).double().cumsum(dim=-1)
    return 1 + (mass[:, :-1] < p).sum(dim=-1, keepdim=True)


def _cut_by_full_sort(scores: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Top-p over the whole vocabulary; among equals at the border the lower ids stay. (Hugging Face sorts unstably.)"""
    descending, order = scores.sort(dim=-1, descending=True, stable=True)
    num_kept = _num_kept(descending, scores.logsumexp(dim=-1, keepdim=True), p)
    is_cut = torch.arange(scores.shape[-1], device=scores.device) >= num_kept
    return scores.masked_fill(is_cut.scatter(1, order, is_cut), EXCLUDED)


@dataclass(frozen=True, slots=True)
class MinP:
    """Nguyen et al. 2024 (arXiv 2407.01082): keep p_i >= min_p * max p, that is z_i >= max z + ln(min_p)."""

    min_p: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[MinP], histories: Sequence[History]) -> torch.Tensor:
        floor = scores.amax(dim=-1, keepdim=True) + column([math.log(s.min_p) for s in steps], scores)
        return scores.masked_fill_(scores < floor, EXCLUDED)
