"""The launch of the compiled kernel (`kernels/topk.py`) on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from decoding.kernels.cpu.sharing import COUNTS_BYTES
from decoding.kernels.cpu.team import default_team
from decoding.kernels.cpu.topk import TOPK
from decoding.kernels.cpu.topk import topk as compiled
from decoding.kernels.cpu.vectors import LANES
from decoding.topk.plain import top_by_key

LEAST_VOCAB = LANES
MOST = 512
"""The best are kept in a list that is moved for each that joins: more of them are ranked by torch."""


def kernel_topk(
    z: torch.Tensor, k: int, normalises: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `plain_topk`, for LEAST_VOCAB columns and more."""
    if k > MOST:
        peak, log_total, _, _ = kernel_topk(z, 0, normalises)
        return peak, log_total, *top_by_key(z - peak.unsqueeze(1) - log_total.unsqueeze(1), k)
    rows, vocab = z.shape
    if z.dtype != torch.float32 or vocab < LEAST_VOCAB or not 0 <= k <= vocab:
        raise ValueError(f"no top {k} of {vocab} columns of {z.dtype}")
    z = z.contiguous()
    normalisers = torch.empty(rows, 2)
    best, ids = torch.empty(rows, k + 1), torch.empty(rows, k + 1, dtype=torch.int64)
    counts, record, team = np.zeros(COUNTS_BYTES // 8, np.int64), np.zeros(1, TOPK), default_team()
    record[0] = (
        z.data_ptr(),
        rows,
        vocab,
        k,
        normalises,
        normalisers.data_ptr(),
        best.data_ptr(),
        ids.data_ptr(),
        counts.ctypes.data,
    )
    team.run(compiled.address, record.ctypes.data)
    return normalisers[:, 0], normalisers[:, 1], best[:, :k], ids[:, :k]
