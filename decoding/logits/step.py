"""One step of the logits pipeline: parameters of one row, arithmetic over many.

A neutral step is never built. `apply` gets the rows that carry this kind of step, each with its own parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from decoding.logits.history import History

EXCLUDED = float("-inf")


class Step(Protocol):
    """scores and the result are float32 [rows, vocab]; `apply` may write into scores."""

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Any], histories: Sequence[History]) -> torch.Tensor: ...


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One number per row, float32 [rows, 1]."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).unsqueeze(1)


def row_sum(values: torch.Tensor) -> torch.Tensor:
    """Sums of rows [rows, n] -> [rows], each the same whatever rows surround it.

    torch would divide a single long row among its threads, and so add it up in another order than one of several.
    """
    blocks = torch.nn.functional.pad(values, (0, -values.shape[-1] % 256)).view(len(values), -1, 256)
    return blocks.sum(dim=-1).sum(dim=-1)


def flat_index(ids: Sequence[np.ndarray], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of each row -> (row index, id) pairs laid end to end, int64 [total] each."""
    rows = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    return torch.from_numpy(rows).to(like.device), torch.from_numpy(flat).to(like.device)
