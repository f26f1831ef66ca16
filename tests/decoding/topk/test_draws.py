"""A draw in two launches, interpreted on the CPU, gives the id that torch's own steps give, for the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from decoding.sampling import draw, greedy
from decoding.topk.draws import triton_draws
from tests.decoding.kernels.launches import launches

INFINITY = float("inf")
SEGMENT = 64


def random(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(scores: torch.Tensor, uniforms: np.ndarray, rows: list[int] | None = None) -> torch.Tensor:
    rows = list(range(len(scores))) if rows is None else rows
    return triton_draws(scores, rows, uniforms, [False] * len(rows), SEGMENT)[1]


def test_a_draw_is_the_one_of_torch_for_the_same_number() -> None:
    scores = random(3, 300)
    rows = [0, 1, 2] * 12
    uniforms = np.random.default_rng(1).random(len(rows))
    assert torch.equal(drawn(scores, uniforms, rows), draw(scores[rows], torch.from_numpy(uniforms)))


def test_the_best_id_is_the_lowest_of_equals_and_the_peak_is_its_score() -> None:
    scores = random(3, 300)
    scores[1, [70, 200]] = 50.0
    scores[2] = -INFINITY
    peaks, ids = triton_draws(scores, [0, 1, 2], np.zeros(3), [True] * 3, SEGMENT)
    assert torch.equal(ids, greedy(scores))
    assert torch.equal(peaks, scores.amax(dim=-1))


def test_a_row_may_be_drawn_from_often_and_greedily_beside() -> None:
    scores, uniforms = random(2, 150), np.array([0.1, 0.0, 0.9, 0.5])
    _, ids = triton_draws(scores, [1, 0, 1, 0], uniforms, [False, True, False, False], SEGMENT)
    expected = draw(scores[[1, 0, 1, 0]], torch.from_numpy(uniforms))
    expected[1] = scores[0].argmax()
    assert torch.equal(ids, expected)


def test_no_excluded_id_is_ever_hit() -> None:
    scores = torch.full((1, 200), -INFINITY)
    scores[0, [3, 130, 131]] = torch.tensor([0.0, 0.0, -3.0])
    uniforms = np.array([0.0, np.nextafter(0.5, 0), 0.5, np.nextafter(1.0, 0), 0.2, 0.7])
    found = drawn(scores, uniforms, [0] * 6).tolist()
    assert set(found) <= {3, 130, 131}
    assert (found[0], found[3]) == (3, 131)


@pytest.mark.parametrize("broken", [float("nan"), INFINITY, -INFINITY])
def test_a_row_that_is_not_finite_harms_no_other_and_its_ids_exist(broken: float) -> None:
    scores, uniforms = random(3, 150), np.array([0.3, 0.6, 0.9])
    sound = drawn(scores, uniforms)
    scores[1] = broken
    peaks, ids = triton_draws(scores, [0, 1, 2], uniforms, [False] * 3, SEGMENT)
    assert ids[[0, 2]].tolist() == sound[[0, 2]].tolist()
    assert 0 <= int(ids.min()) <= int(ids.max()) < 150
    assert peaks.isfinite().tolist() == [True, False, True]


def test_a_draw_costs_two_launches_whatever_is_drawn() -> None:
    scores = random(4, 100)
    with launches() as counts:
        triton_draws(scores, [0, 1, 2, 3], np.zeros(4), [True, False, True, False], SEGMENT)
    assert dict(counts) == {"weigh": 1, "pick": 1}
