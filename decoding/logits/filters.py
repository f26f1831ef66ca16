"""Steps that cut the tail of the distribution: top-k, top-p, min-p. Excluded scores become -inf.

A full sort of the vocabulary is what makes samplers slow, so top-p looks at the best few first and sorts only the rows
whose mass those do not cover. Which way a row goes depends on that row alone. On a GPU the border is found by
bisection (`topk/nucleus.py`), and where there is no Triton, among equals at least without a sort (`cut_unseen`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from decoding.device import has_triton, is_asynchronous
from decoding.logits.context import Context
from decoding.logits.ranks import is_among_best, is_beyond, kth_best
from decoding.logits.slow_path import mended, where_not
from decoding.logits.step import EXCLUDED, column, softmax

FEW = 256
ASYNCHRONOUS_FEW = 1024
"""On a GPU, where more of the best cost hardly more, and a row whose mass they do not cover costs a wait or a sort."""


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
        probabilities = softmax(scores)
        if is_asynchronous(scores.device):
            return _unseen_cut()(scores, probabilities, p, keep)
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


Cut = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@functools.cache
def _unseen_cut() -> Cut:
    """What needs no look at the rows, or few."""
    if not has_triton():
        return cut_unseen
    from decoding.topk.nucleus import cut_nucleus  # noqa: PLC0415 - needs triton

    return cut_nucleus


def cut_unseen(
    scores: torch.Tensor, probabilities: torch.Tensor, p: torch.Tensor, keep: torch.Tensor, few: int = ASYNCHRONOUS_FEW
) -> torch.Tensor:
    """Top-p that needs no look at the rows to settle a border among equals, as scores in half precision often have."""
    best, ids = scores.topk(min(few, scores.shape[-1]), dim=-1)
    width = best.shape[1]
    mass = probabilities.gather(1, ids).double().cumsum(dim=-1)
    num_kept = _num_reaching(mass, p, keep)
    threshold = best.gather(1, num_kept.clamp(max=width) - 1)
    quick = scores.masked_fill(is_beyond(scores, threshold, num_kept), EXCLUDED)
    if width == scores.shape[-1]:
        return quick
    is_clear = (mass[:, -1:] >= p) & (num_kept <= width)
    return mended(
        quick, is_clear, lambda rows: _cut_by_full_sort(scores[rows], probabilities[rows], p[rows], keep[rows])
    )


def _num_kept(descending: torch.Tensor, p: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """How many of the best probabilities [rows, n] stay, [rows, 1]: one does while the mass before it is below p."""
    return _num_reaching(descending.double().cumsum(dim=-1), p, keep)


def _num_reaching(mass: torch.Tensor, p: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The same of the running sums of these probabilities."""
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
