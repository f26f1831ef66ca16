"""Filters that measure the whole distribution: top-n-sigma its spread; typical, eta and epsilon its probabilities.

`filters` puts every filter of a request in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from decoding.contract.params import LogitsParams
from decoding.logits.context import Context
from decoding.logits.entropy import entropy_of
from decoding.logits.filters import FEW, MinP, TopK, TopP
from decoding.logits.ranks import is_among_best, kth_best
from decoding.logits.slow_path import Rows, mended
from decoding.logits.step import EXCLUDED, Step, column, log_softmax, row_sum, softmax


@dataclass(frozen=True, slots=True)
class TopNSigma:
    """Tang et al. 2024 (arXiv 2411.07641): keep z_i >= M - n * s.

    M and s are the maximum and the (unbiased) standard deviation of the scores not yet excluded.
    """

    n: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[TopNSigma], context: Context) -> torch.Tensor:
        is_in = scores.isfinite()
        count = is_in.sum(dim=-1, keepdim=True)
        mean = row_sum(torch.where(is_in, scores, 0.0)).unsqueeze(1) / count
        squares = row_sum(torch.where(is_in, (scores - mean).square(), 0.0)).unsqueeze(1)
        s = (squares / (count - 1).clamp(min=1)).sqrt()
        floor = scores.amax(dim=-1, keepdim=True) - column([step.n for step in steps], scores) * s
        return scores.masked_fill_(scores < floor, EXCLUDED)


@dataclass(frozen=True, slots=True)
class Typical:
    """Meister et al. 2022 (arXiv 2202.00666): the ids whose surprise is closest to the entropy H, up to a mass.

    Sorted by |-log p_i - H|, those up to the first at which their mass reaches `mass` stay, with its equals; at least
    `keep` do.
    """

    mass: float
    keep: int = 1

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Typical], context: Context) -> torch.Tensor:
        p, logp = softmax(scores), log_softmax(scores)
        distance = (logp + entropy_of(p, logp)).abs()  # [rows, vocab]
        is_cut = distance > _reach(distance, p, column([s.mass for s in steps], scores))
        keep = [s.keep for s in steps]
        if max(keep) > 1:
            is_cut &= ~is_among_best(-distance, keep)
        return scores.masked_fill_(is_cut, EXCLUDED)


def _reach(distance: torch.Tensor, p: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """The distance [rows, 1] within which the mass lies; looks at the nearest few first, as top-p does."""
    nearest, ids = distance.topk(min(FEW, distance.shape[-1]), dim=-1, largest=False)
    reach, is_covered = _reach_among(nearest, p.gather(1, ids), mass)

    def exact(rows: Rows) -> torch.Tensor:
        every, order = distance[rows].sort(dim=-1, stable=True)
        return _reach_among(every, p[rows].gather(1, order), mass[rows])[0]

    return mended(reach, is_covered, exact)


def _reach_among(ascending: torch.Tensor, p: torch.Tensor, mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Among these distances [rows, n] with probabilities p: where the mass is reached, and whether it is, [rows, 1]."""
    num_within = (p.double().cumsum(dim=-1) < mass).sum(dim=-1, keepdim=True)
    last = ascending.shape[1] - 1
    return ascending.gather(1, num_within.clamp(max=last)), num_within <= last


@dataclass(frozen=True, slots=True)
class Epsilon:
    """Hewitt et al. 2022 (arXiv 2210.15191): keep p_i >= epsilon; at least the `keep` best, with their equals."""

    epsilon: float
    keep: int = 1

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Epsilon], context: Context) -> torch.Tensor:
        is_rare = softmax(scores) < column([s.epsilon for s in steps], scores)
        return _cut_all_but_best(scores, is_rare, [s.keep for s in steps])


@dataclass(frozen=True, slots=True)
class Eta:
    """Hewitt et al. 2022 (arXiv 2210.15191): keep p_i >= min(epsilon, sqrt(epsilon) * exp(-H)); the rest as Epsilon."""

    epsilon: float
    keep: int = 1

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Eta], context: Context) -> torch.Tensor:
        p, logp = softmax(scores), log_softmax(scores)
        log_epsilon = column([math.log(s.epsilon) for s in steps], scores)
        log_eta = log_epsilon.minimum(0.5 * log_epsilon - entropy_of(p, logp))
        return _cut_all_but_best(scores, logp < log_eta, [s.keep for s in steps])


def filters(params: LogitsParams) -> Iterator[Step]:
    """Those of a request that are not neutral, in order; sampler_order "vllm" puts min_p first."""
    keep = params.min_tokens_to_keep
    min_p = [MinP(params.min_p, keep)] if params.min_p else []
    if params.sampler_order == "vllm":
        yield from min_p
    if params.top_k:
        yield TopK(max(params.top_k, keep))
    if params.top_p < 1:
        yield TopP(params.top_p, keep)
    if params.sampler_order == "hf":
        yield from min_p
    if params.typical_p < 1:
        yield Typical(params.typical_p, keep)
    if params.epsilon_cutoff:
        yield Epsilon(params.epsilon_cutoff, keep)
    if params.eta_cutoff:
        yield Eta(params.eta_cutoff, keep)


def _cut_all_but_best(scores: torch.Tensor, is_rare: torch.Tensor, keep: Sequence[int]) -> torch.Tensor:
    return scores.masked_fill_(is_rare & (scores < kth_best(scores, keep)), EXCLUDED)
