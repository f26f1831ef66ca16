"""The launches of the Triton kernels of a draw; under TRITON_INTERPRET=1 on the CPU, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding.device import to_device
from decoding.kernels.gpu import draw as kernels

SEGMENT = 2048
"""Columns that a program has in registers; the borders are multiples of it, whatever the batch."""


def triton_draws(
    scores: torch.Tensor,
    rows: Sequence[int],
    uniforms: np.ndarray,
    are_greedy: Sequence[bool],
    segment: int = SEGMENT,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores [rows, vocab] float32: the best of each row that is drawn from, and the id of each draw.

    rows, uniforms (float64) and are_greedy: of each draw. A row with a NaN has NaN for its best.
    """
    num_rows, vocab = scores.shape
    scores, segments, device = scores.contiguous(), -(-vocab // segment), scores.device
    peaks = scores.new_empty(num_rows, segments)
    bests, totals = torch.empty(2, num_rows, segments, dtype=torch.int64, device=device).unbind()
    kernels.weigh[(num_rows, segments)](scores, peaks, bests, totals, vocab, segment, enable_fp_fusion=False)
    draws = to_device(np.stack((np.asarray(rows), uniforms.view(np.int64), np.asarray(are_greedy, np.int64))), device)
    ids, row_peaks = draws.new_empty(len(rows)), scores.new_empty(num_rows)
    kernels.pick[(len(rows),)](
        scores, peaks, bests, totals, draws[0], draws[1].view(torch.float64), draws[2], ids, row_peaks,
        vocab, segments, segment, 1 << (segments - 1).bit_length(), enable_fp_fusion=False,
    )  # fmt: skip
    return row_peaks, ids
