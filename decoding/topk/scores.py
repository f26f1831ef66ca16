"""Scores of whole rows without writing them out: normalisers, the k best, and single ones on demand.

A score is z - peak - log_total, rounded after each, wherever it is computed: in a kernel, one by one, or a whole row.
So no number depends on what else was asked, nor on who asked beside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from decoding.device import has_triton
from decoding.kernels import cpu as kernels
from decoding.topk.plain import plain_topk


@dataclass(frozen=True, slots=True)
class RowScores:
    """best, ids: of each row's k best, the lower id first among equals."""

    z: torch.Tensor  # float32 [rows, vocab]
    peak: torch.Tensor  # [rows]
    log_total: torch.Tensor  # [rows]
    best: torch.Tensor  # [rows, k]
    ids: torch.Tensor  # int64 [rows, k]

    def at(self, rows: torch.Tensor | int, ids: torch.Tensor | int) -> torch.Tensor:
        """The scores of these ids in these rows, broadcast against each other."""
        return self.z[rows, ids] - self.peak[rows] - self.log_total[rows]

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """The scores of ids [rows, n] in their rows."""
        return self.z.gather(1, ids) - self.peak.unsqueeze(1) - self.log_total.unsqueeze(1)

    def row(self, row: int) -> torch.Tensor:
        """All scores of a row [vocab], in memory of their own."""
        return (self.z[row] - self.peak[row]).sub_(self.log_total[row])

    def whole(self) -> torch.Tensor:
        """All scores [rows, vocab], in memory of their own."""
        return (self.z - self.peak.unsqueeze(1)).sub_(self.log_total.unsqueeze(1))


Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
TopK = Callable[[torch.Tensor, int, bool], Found]
"""From z, k and whether to normalise: peak, log_total, best and ids as RowScores has them."""


def log_softmax_topk(z: torch.Tensor, k: int = 0) -> RowScores:
    """log_softmax of z [rows, vocab], and of each row the k best (or all there are)."""
    return RowScores(z, *_topk_for(z)(z, min(k, z.shape[1]), True))


def topk(scores: torch.Tensor, k: int) -> RowScores:
    """Scores [rows, vocab] as they are, and of each row the k best (or all there are)."""
    return RowScores(scores, *_topk_for(scores)(scores, min(k, scores.shape[1]), False))


def compile_topk(vocab: int, device: torch.device) -> None:
    """All that rows of so many columns may ask for, before anybody waits for it; nothing where nothing is compiled."""
    if device.type == "cuda" and has_triton():
        from decoding.topk.triton import widths_compiled  # noqa: PLC0415 - needs triton

        for k in widths_compiled(vocab):
            log_softmax_topk(torch.zeros(1, vocab, device=device), k)


def _topk_for(z: torch.Tensor) -> TopK:
    found, least = _compiled_topk(z.device.type)
    return found if z.shape[1] >= least else plain_topk


@functools.cache
def _compiled_topk(device: str) -> tuple[TopK, int]:
    """What this device computes with, and the smallest vocabulary for it."""
    if device == "cpu" and kernels.available():
        from decoding.topk.kernel import LEAST_VOCAB, kernel_topk  # noqa: PLC0415 - needs numba

        return kernel_topk, LEAST_VOCAB
    if device == "cuda" and has_triton():
        from decoding.topk.triton import triton_topk  # noqa: PLC0415 - needs triton

        return triton_topk, 1
    return plain_topk, 1
