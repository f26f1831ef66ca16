"""The launch of the compiled kernel (`kernels/topk.py`) on the CPU."""

from __future__ import annotations

import numpy as np
import torch

from decoding.kernels.sharing import COUNTS_BYTES
from decoding.kernels.team import default_team
from decoding.kernels.topk import TOPK
from decoding.kernels.topk import topk as compiled
from decoding.kernels.vectors import LANES

LEAST_VOCAB = LANES


def kernel_topk(
    z: torch.Tensor, k: int, normalises: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `plain_topk`, for LEAST_VOCAB columns and more."""
    rows, vocab = z.shape
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
