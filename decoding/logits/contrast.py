"""DoLa's contrast of the last layer with a premature one (Chuang et al. 2023, arXiv 2309.03883).

    M = argmax_j JSD(p_N, p_j) over the candidate layers j of the row
    keep the ids with log p_N >= max log p_N + log 0.1; score log p_N - log p_M, all others are excluded

Every row picks its own layer. (Hugging Face averages over its batch and picks one; at batch 1 that is the same.)
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from decoding.logits.step import EXCLUDED

RELATIVE_TOP = 0.1


def contrast(logits: torch.Tensor, premature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [rows, vocab], premature [rows, layers, vocab] -> scores [rows, vocab], index of the layer [rows]."""
    logp = logits.log_softmax(dim=-1)
    base = premature.log_softmax(dim=-1)
    chosen = _furthest(logp, base)
    rows = torch.arange(len(logits), device=logits.device)
    is_plausible = logp >= logp.amax(dim=-1, keepdim=True) + math.log(RELATIVE_TOP)
    return (logp - base[rows, chosen]).masked_fill_(~is_plausible, EXCLUDED), chosen


def _furthest(logp: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Index of the layer whose Jensen-Shannon divergence from the last one is largest, the first among equals.

    The divergence has Hugging Face's form: both terms compare the average with a distribution, not the reverse.
    """
    if base.shape[1] == 1:
        return base.new_zeros(len(base), dtype=torch.int64)
    average = 0.5 * (logp.softmax(dim=-1).unsqueeze(1) + base.softmax(dim=-1))  # [rows, layers, vocab]
    from_last = F.kl_div(logp.unsqueeze(1).expand_as(average), average, reduction="none").mean(dim=-1)
    from_base = F.kl_div(base, average, reduction="none").mean(dim=-1)
    return (from_last + from_base).argmax(dim=-1)
