"""The launches of the Triton kernels (`triton_kernels.py`) on a GPU; under TRITON_INTERPRET=1 on the CPU, for tests."""

from __future__ import annotations

import torch

from decoding.topk import triton_kernels as kernels
from decoding.topk.plain import top_by_key

SEGMENT = 4096
"""Columns that a program has in registers; the borders are multiples of it, whatever the batch."""
CANDIDATES = (32, 128)
"""Few sizes, for each is compiled at its first use. What needs more is ranked by torch."""


def triton_topk(
    z: torch.Tensor, k: int, normalises: bool, segment: int = SEGMENT
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `plain_topk`."""
    rows, vocab = z.shape
    z = z.contiguous()
    kept = next((size for size in CANDIDATES if k < size), 0) if k else 0
    segments = -(-vocab // segment)
    peaks, totals, normalisers = (z.new_empty(rows, width) for width in (segments, segments, 2))
    candidates = torch.empty(rows, segments, kept, dtype=torch.int64, device=z.device)
    best, ids = z.new_empty(rows, k), torch.empty(rows, k, dtype=torch.int64, device=z.device)
    kernels.scan[(rows, segments)](z, peaks, totals, candidates, vocab, segment, kept)
    kernels.settle[(rows,)](
        z, peaks, totals, candidates, normalisers, best, ids, vocab, segments, k, int(normalises),
        segment, 1 << (segments - 1).bit_length(), kept,
    )  # fmt: skip
    peak, log_total = normalisers.unbind(1)
    if k and not kept:
        best, ids = top_by_key(z - peak.unsqueeze(1) - log_total.unsqueeze(1), k)
    return peak, log_total, best, ids
