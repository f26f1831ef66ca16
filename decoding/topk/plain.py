"""The k best by torch alone, for machines without kernels; the oracle of those that have them."""

from __future__ import annotations

import torch


def plain_topk(
    z: torch.Tensor, k: int, normalises: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Peak and log_total [rows] (0 where z is not to be normalised), the k best scores and their ids [rows, k]."""
    peak = log_total = z.new_zeros(len(z))
    if normalises:
        peak = z.amax(dim=-1)
        # log_softmax goes row by row; of what is largest, 0, it leaves nothing but minus the logarithm.
        log_total = -(z - peak.unsqueeze(1)).log_softmax(dim=-1).amax(dim=-1)
    scores = z - peak.unsqueeze(1) - log_total.unsqueeze(1)
    return peak, log_total, *top_by_key(scores, k)


def top_by_key(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best scores and their ids, the lower id first among equals: [rows, vocab] -> two [rows, k].

    torch.topk promises nothing about ties, so every score gets a key of its own, (score, -id) as int64. Nothing that
    the host would have to look at in between.
    """
    vocab = scores.shape[-1]
    bits = (scores + 0.0).view(torch.int32).long()  # + 0: a negative zero is a zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # floats in the order of integers
    keys = (ordered << 32) + (vocab - 1 - torch.arange(vocab, device=scores.device))
    ids = keys.topk(k, dim=-1).indices
    return scores.gather(1, ids), ids
