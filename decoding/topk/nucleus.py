"""The launch of the Triton kernel that cuts to the nucleus; under TRITON_INTERPRET=1 on the CPU, for tests."""

from __future__ import annotations

import torch

from decoding.kernels.gpu import nucleus as kernels

MOST = 16384
"""Ids of a row that are gathered; a row in which more could be in the nucleus is read whole at each step."""
BLOCK = 2048


def cut_nucleus(
    scores: torch.Tensor, probabilities: torch.Tensor, p: torch.Tensor, keep: torch.Tensor, most: int = MOST
) -> torch.Tensor:
    """Exclude from scores [rows, vocab], in place, all but the smallest set of best ids with probability p.

    p, keep: [rows, 1], float32. At least `keep` stay; among equals the lower ids.
    """
    rows, vocab = scores.shape
    most = min(most, vocab)
    some = scores.new_empty(2, rows, most)
    kernels.cut_nucleus[(rows,)](
        scores, probabilities, p, keep.long(), some[0], some[1], vocab, most, min(BLOCK, 1 << (vocab - 1).bit_length()),
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    return scores
