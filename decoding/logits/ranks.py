"""The best of a row: the k-th score, and exactly the k best ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.device import indices


def kth_best(scores: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """The k-th best of each row's scores [rows, vocab], the last one where k is too large: [rows, 1]."""
    width = min(max(ks), scores.shape[-1])
    if width == 1:
        return scores.amax(dim=-1, keepdim=True)
    at = indices([min(k, width) - 1 for k in ks], scores.device).unsqueeze(1)
    return scores.topk(width, dim=-1).values.gather(1, at)


def is_among_best(scores: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """Whether an id is one of its row's k best, the lower ids first among equals: [rows, vocab] -> bool alike."""
    kth = kth_best(scores, ks)
    above, level = scores > kth, scores == kth
    room = indices(ks, scores.device).unsqueeze(1) - above.sum(dim=-1, keepdim=True)
    return above | (level & (level.cumsum(dim=-1) <= room))


def is_beyond(scores: torch.Tensor, kth: torch.Tensor, ks: torch.Tensor) -> torch.Tensor:
    """The opposite, given the k-th best scores and the ks, [rows, 1] both; a row of NaN has none beyond."""
    level = scores == kth
    room = ks - (scores > kth).sum(dim=-1, keepdim=True)
    return (scores < kth) | (level & (level.cumsum(dim=-1) > room))
