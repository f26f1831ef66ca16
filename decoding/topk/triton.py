"""The launches of `kernels/gpu/topk.py` on a GPU; under TRITON_INTERPRET=1 on the CPU, for tests."""

from __future__ import annotations

import torch

from decoding.kernels.gpu import topk as kernels
from decoding.topk.plain import top_by_key

SEGMENT = 4096
"""Columns that a program has in registers; the borders are multiples of it, whatever the batch."""
MOST = 128
"""Each of the best is a step of a loop: more of them are ranked by torch."""
LANES = 1024
"""Candidates of a row that are looked at together, at least: few sizes, for each is compiled at its first use."""


def triton_topk(
    z: torch.Tensor, k: int, normalises: bool, segment: int = SEGMENT
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `plain_topk`."""
    rows, vocab = z.shape
    z = z.contiguous()
    kept = k + 1 if 0 < k <= MOST else 0
    segments = -(-vocab // segment)
    peaks, totals, normalisers = (z.new_empty(rows, width) for width in (segments, segments, 2))
    candidates, keys = (
        torch.empty(rows, width, dtype=torch.int64, device=z.device) for width in (segments * kept, max(kept - 1, 0))
    )
    kernels.scan[(rows, segments)](z, peaks, totals, candidates, vocab, kept, segment, enable_fp_fusion=False)
    lanes = _lanes(segments, kept)
    kernels.settle[(rows,)](
        z, peaks, totals, candidates, normalisers, keys, vocab, segments, kept, int(normalises),
        segment, _power_of_two(segments), lanes,
        num_warps=min(16, max(4, lanes // 512)), enable_fp_fusion=False,
    )  # fmt: skip
    peak, log_total = normalisers.unbind(1)
    if k > MOST:
        return peak, log_total, *top_by_key(z - peak.unsqueeze(1) - log_total.unsqueeze(1), k)
    ids = vocab - 1 - (keys & 0xFFFFFFFF)
    return peak, log_total, z.gather(1, ids) - peak.unsqueeze(1) - log_total.unsqueeze(1), ids


def widths_compiled(vocab: int, segment: int = SEGMENT) -> list[int]:
    """The least k for each size that kernels are compiled in, of rows of so many columns."""
    segments = -(-vocab // segment)
    sizes = {_lanes(segments, k + 1): k for k in range(min(MOST, vocab), 0, -1)}
    return sorted(sizes.values())


def _lanes(segments: int, kept: int) -> int:
    return _power_of_two(max(LANES, segments * kept))


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
