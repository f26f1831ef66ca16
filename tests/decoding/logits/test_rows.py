"""Sums and exponentials of rows whose bits no neighbour changes, as a GPU computes them too."""

from __future__ import annotations

import pytest
import torch

from decoding.logits import step
from decoding.logits.step import log_softmax, row_sum, softmax


@pytest.mark.parametrize("width", [1, 255, 257, 1000, 50257])
def test_row_sums_are_sums(width: int) -> None:
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    torch.testing.assert_close(row_sum(values), values.double().sum(1).float(), rtol=1e-5, atol=1e-4)


def test_the_sums_of_blocks_are_added_up_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch on a GPU adds up few long rows in another order than many: only the many short blocks may be left to it."""
    summed = []
    own = torch.Tensor.sum

    def noting(values: torch.Tensor, dim: int) -> torch.Tensor:
        summed.append(tuple(values.shape))
        return own(values, dim=dim)

    monkeypatch.setattr(torch.Tensor, "sum", noting)
    row_sum(torch.ones(2, 50257))
    assert summed == [(2, 197, 256)]


@pytest.mark.parametrize("width", [7, 8])
def test_rows_of_an_odd_vocabulary_begin_where_a_gpu_adds_them_up_alike(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "is_asynchronous", lambda _device: True)
    scores = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    starts = step._aligned(scores).stride(0) * scores.itemsize
    assert starts % 16 == 0
    torch.testing.assert_close(softmax(scores), scores.softmax(-1))
    torch.testing.assert_close(log_softmax(scores), scores.log_softmax(-1))
