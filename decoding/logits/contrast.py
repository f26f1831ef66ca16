"""DoLa's contrast of the last layer with a premature one (Chuang et al. 2023, arXiv 2309.03883).

    M = argmax_j JSD(p_N, p_j) over the candidate layers j of the row
    keep the ids with log p_N >= max log p_N + log relative_top; score log p_N - log p_M, all others are excluded

Where the row's masks forbid all that is kept, the maximum is over the ids that they leave. (Hugging Face goes on with
id 0 there.) Every row picks its own layer. (Hugging Face averages over its batch and picks one; at batch 1 that is the
same.)
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from decoding.logits.step import EXCLUDED, log_softmax, row_sum

RELATIVE_TOP = 0.1


def contrast(
    logits: torch.Tensor,
    premature: torch.Tensor,
    is_excluded: torch.Tensor | None = None,
    relative_top: float = RELATIVE_TOP,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [rows, vocab], premature [rows, layers, vocab] -> scores [rows, vocab], index of the layer [rows].

    is_excluded: bool [rows, vocab], ids that the row's masks exclude.
    """
    logp = log_softmax(logits)
    base = log_softmax(premature)
    chosen = _furthest(logp, base)
    rows = torch.arange(len(logits), device=logits.device)
    is_plausible = near_the_best(logp, relative_top)
    if is_excluded is not None:
        is_lost = ~(is_plausible & ~is_excluded).any(dim=-1, keepdim=True)
        is_next_best = near_the_best(logp.masked_fill(is_excluded, EXCLUDED), relative_top)
        is_plausible = torch.where(is_lost, is_next_best, is_plausible)
    return (logp - base[rows, chosen]).masked_fill_(~is_plausible, EXCLUDED), chosen


def near_the_best(logp: torch.Tensor, relative_top: float) -> torch.Tensor:
    """Which ids are at least so many times as likely as the likeliest: bool, of the shape of logp [..., vocab]."""
    return logp >= logp.amax(dim=-1, keepdim=True) + math.log(relative_top)


def _furthest(logp: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Index of the layer whose Jensen-Shannon divergence from the last one is largest, the first among equals.

    logp [rows, vocab], base [rows, layers, vocab] -> [rows]. The divergence has Hugging Face's form: both terms compare
    the average with a distribution, not the reverse.
    """
    if base.shape[1] == 1:
        return base.new_zeros(len(base), dtype=torch.int64)
    p = logp.exp()
    return torch.stack([_divergence(logp, p, base[:, j]) for j in range(base.shape[1])], dim=1).argmax(dim=1)


def _divergence(logp: torch.Tensor, p: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """KL(avg || p) + KL(avg || q) of logp = log p and base = log q [rows, vocab], [rows]."""
    average = 0.5 * (p + base.exp())
    terms = F.kl_div(logp, average, reduction="none") + F.kl_div(base, average, reduction="none")
    return row_sum(terms)
