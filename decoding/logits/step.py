"""One step of the logits pipeline: parameters of one row, arithmetic over many.

A neutral step is never built. `apply` gets the rows that carry this kind of step, each with its own parameters.

A row comes out the same bits in any batch: torch adds up one long row in another order than several, and computes the
last few elements of a flattened batch by other code. So sums go through `row_sum`, exponentials through `softmax` and
`log_softmax` or `row_exp`; comparisons, + - * / and float64 running sums are safe as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from decoding.device import is_asynchronous, to_device
from decoding.logits.context import Context

EXCLUDED = float("-inf")
_LANES = 64


class Step(Protocol):
    """scores and the result are float32 [rows, vocab]; `apply` may write into scores."""

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Any], context: Context) -> torch.Tensor: ...


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One number per row, float32 [rows, 1]."""
    return to_device(np.asarray(values, dtype=np.float32), like.device).unsqueeze(1)


def row_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums of rows [rows, n] -> [rows], each the same whatever rows surround it.

    torch would divide a single long row among its threads, and so add it up in another order than one of several. A GPU
    sums by other programs where there are few sums than where there are many, as there are of blocks; those are halved.
    """
    blocks = torch.nn.functional.pad(values, (0, -values.shape[-1] % 256)).view(len(values), -1, 256)
    sums = blocks.sum(dim=-1)
    while (width := sums.shape[-1]) > 1:
        sums = torch.nn.functional.pad(sums, (0, width % 2))
        sums = sums[:, : (width + 1) // 2] + sums[:, (width + 1) // 2 :]
    return sums.squeeze(-1)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Of rows [..., vocab], each the same bits whatever rows surround it."""
    return _aligned(scores).softmax(dim=-1)[..., : scores.shape[-1]]


def log_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Of rows [..., vocab], each the same bits whatever rows surround it."""
    return _aligned(scores).log_softmax(dim=-1)[..., : scores.shape[-1]]


def _aligned(scores: torch.Tensor) -> torch.Tensor:
    """On a GPU with rows that begin at multiples of 16 bytes: torch adds up a row in an order that depends on it."""
    missing = -scores.shape[-1] % (16 // scores.itemsize) if is_asynchronous(scores.device) else 0
    return torch.nn.functional.pad(scores, (0, missing), value=EXCLUDED) if missing else scores


def row_exp(values: torch.Tensor) -> torch.Tensor:
    """exp of one number per row [rows, 1], each the same whatever rows surround it: each fills whole vectors alone."""
    return values.expand(-1, _LANES).contiguous().exp()[:, :1]


def flat_index(ids: Sequence[np.ndarray], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of each row -> (row index, id) pairs laid end to end, int64 [total] each."""
    rows = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    return to_device(rows, like.device), to_device(flat, like.device)


def exclude(scores: torch.Tensor, ids: Sequence[np.ndarray]) -> torch.Tensor:
    """Exclude ids of each row from scores [rows, vocab], in place."""
    scores[flat_index(ids, scores)] = EXCLUDED
    return scores


def shift(scores: torch.Tensor, ids: Sequence[np.ndarray], amounts: Sequence[np.ndarray]) -> torch.Tensor:
    """Add amounts to distinct ids of each row of scores [rows, vocab], in place."""
    scores[flat_index(ids, scores)] += to_device(np.concatenate(amounts).astype(np.float32), scores.device)
    return scores
