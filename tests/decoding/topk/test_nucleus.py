"""The nucleus by bisection, interpreted on the CPU, is the one that a full sort finds, equals and all."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from decoding.logits import filters
from decoding.logits.context import Context
from decoding.logits.filters import TopP, _cut_by_full_sort
from decoding.topk.nucleus import cut_nucleus

INFINITY = float("inf")


def random(rows: int, vocab: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(1)


def cut(scores: torch.Tensor, p: torch.Tensor, keep: torch.Tensor, most: int = 4096) -> torch.Tensor:
    return cut_nucleus(scores.clone(), scores.softmax(dim=-1), p, keep, most)


@pytest.mark.parametrize("most", [4096, 8])
def test_it_keeps_what_a_full_sort_keeps(most: int) -> None:
    """Gathered first, and read whole where more could be in the nucleus than is gathered."""
    scores = torch.cat([random(2, 300), random(2, 300, scale=0.1)])
    p, keep = column(0.9, 0.3, 0.95, 0.5), column(1, 1, 1, 200)
    expected = _cut_by_full_sort(scores, scores.softmax(dim=-1), p, keep)
    assert torch.equal(cut(scores, p, keep, most), expected)
    assert (expected.isfinite().sum(dim=-1) < 299).all()


def test_among_equals_at_the_border_the_lower_ids_stay() -> None:
    coarse = (random(2, 300) * 2).round() / 2
    even = torch.zeros(1, 300)
    scores, p, keep = torch.cat([coarse, even]), column(0.9, 0.5, 0.25), column(1, 1, 1)
    found = cut(scores, p, keep)
    assert torch.equal(found, _cut_by_full_sort(scores, scores.softmax(dim=-1), p, keep))
    assert abs(int(found[2].isfinite().sum()) - 75) <= 1
    assert found[2, :74].isfinite().all()


def test_it_is_the_nucleus_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = (random(3, 700, scale=2) * 8).round() / 8
    scores[:, 7::13] = -INFINITY
    steps = [TopP(0.9), TopP(0.3), TopP(0.5, keep=400)]
    expected = TopP.apply(scores.clone(), steps, Context([], scores))
    monkeypatch.setattr(filters, "is_asynchronous", lambda _device: True)
    monkeypatch.setattr(filters, "_unseen_cut", lambda: cut_nucleus)
    assert torch.equal(TopP.apply(scores.clone(), steps, Context([], scores)), expected)


def test_at_least_so_many_stay() -> None:
    scores = random(1, 100, scale=20)
    found = cut(scores, column(0.1), column(7))
    assert torch.equal(found, _cut_by_full_sort(scores, scores.softmax(dim=-1), column(0.1), column(7)))
    assert found.isfinite().sum() == 7


def test_a_mass_that_rounding_keeps_out_of_reach_keeps_all() -> None:
    scores = random(1, 200)
    short = scores.softmax(dim=-1) * 0.5
    assert torch.equal(cut_nucleus(scores.clone(), short, column(0.9), column(1)), scores)


def test_excluded_ids_stay_so_and_what_is_no_number_is_left_to_be_seen() -> None:
    scores = random(2, 100)
    scores[0, 5:] = -INFINITY
    scores[1, 3] = float("nan")
    found = cut(scores, column(0.99, 0.9), column(1, 1))
    assert found[0, 5:].isneginf().all()
    assert found[0].max() == scores[0].max()
    assert found[1].amax().isnan()


def test_a_rows_bits_depend_on_no_neighbour() -> None:
    scores, p, keep = random(3, 150), column(0.9, 0.8, 0.7), column(1, 1, 1)
    together = cut(scores, p, keep)
    assert torch.equal(cut(scores[1:2], p[1:2], keep[1:2]), together[1:2])
