"""Entropy and varentropy of rows, in nats."""

from __future__ import annotations

import torch

from decoding.logits.step import log_softmax, row_sum, softmax

_LEAST_LOGP = -200.0  # below the logarithm of any positive float32: only stands for -inf, which times 0 is NaN


def entropies(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy and varentropy in nats of softmax(logits [rows, vocab]), both [rows]; a row's do not depend on others."""
    p = softmax(logits)
    surprise = torch.where(p > 0, log_softmax(logits), 0.0)
    entropy = -row_sum(p * surprise)
    return entropy, row_sum(p * (surprise + entropy.unsqueeze(1)).square())


def entropy_of(p: torch.Tensor, logp: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of distributions p with logarithms logp, [rows, vocab] -> [rows, 1]."""
    return -row_sum(p * logp.clamp(min=_LEAST_LOGP)).unsqueeze(1)
