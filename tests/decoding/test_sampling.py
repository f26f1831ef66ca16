"""The random numbers and the draw. Statistical tests use fixed seeds, so they cannot fail by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoding.sampling import draw, greedy, philox, uniforms
from decoding.seam import Purpose
from tests.decoding.rounding_error import of_log_softmax, of_sum

ALL_ONES = 0xFFFFFFFF


def hexed(words: np.ndarray) -> list[str]:
    return [f"{int(w):08x}" for w in words]


def test_philox_gives_the_published_test_vectors() -> None:
    zeros = philox(np.zeros((1, 4), np.uint32), np.zeros((1, 2), np.uint32))
    ones = philox(np.full((1, 4), ALL_ONES, np.uint32), np.full((1, 2), ALL_ONES, np.uint32))
    assert hexed(zeros[0]) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert hexed(ones[0]) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_every_part_of_the_key_matters_and_nothing_else() -> None:
    base = uniforms([7], [0], [5], [Purpose.SAMPLE])[0]
    assert uniforms([1, 7, 9], [4, 0, 2], [8, 5, 1], [Purpose.SAMPLE] * 3)[1] == base
    others = [
        uniforms([8], [0], [5], [Purpose.SAMPLE])[0],
        uniforms([7 + 2**32], [0], [5], [Purpose.SAMPLE])[0],
        uniforms([7], [1], [5], [Purpose.SAMPLE])[0],
        uniforms([7], [0], [6], [Purpose.SAMPLE])[0],
        uniforms([7], [0], [5], [Purpose.BEAM_GUMBEL])[0],
        uniforms([7], [0], [5], [Purpose.SAMPLE], lane=1)[0],
    ]
    assert len({base, *others}) == 7


def test_uniforms_are_uniform() -> None:
    count = 40_000
    numbers = uniforms([3] * count, [0] * count, range(count), [Purpose.SAMPLE] * count)
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi_square = ((histogram - count / 20) ** 2 / (count / 20)).sum()
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand
    assert 0 <= numbers.min() < numbers.max() < 1


@pytest.mark.parametrize("vocab", [3, 256, 257, 1000])
def test_the_draw_inverts_the_distribution_function(vocab: int) -> None:
    scores = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    ends = scores.double().softmax(-1).cumsum(-1)[0]
    uniform = torch.linspace(0.0005, 0.9995, 500, dtype=torch.float64)
    got = draw(scores.expand(500, -1), uniform)
    border = of_log_softmax(float(scores.log_softmax(-1).abs().max()), vocab) + of_sum(256)  # p and blocks are float32
    clear = (uniform.unsqueeze(1) - ends).abs().min(dim=1).values > border
    assert torch.equal(got[clear], torch.searchsorted(ends, uniform, right=True)[clear])
    assert clear.sum() > 450


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, 1 - 2**-53])
def test_an_excluded_id_is_never_drawn(u: float) -> None:
    scores = torch.full((3, 700), float("-inf"))
    for index, ids in enumerate(([699], [0], [255, 256, 512])):
        scores[index, ids] = 1.0
    drawn = draw(scores, torch.full((3,), u, dtype=torch.float64)).tolist()
    assert drawn[0] == 699
    assert drawn[1] == 0
    assert drawn[2] in (255, 256, 512)


def test_draws_follow_the_distribution() -> None:
    count = 50_000
    p = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625])
    numbers = uniforms([1] * count, [0] * count, range(count), [Purpose.SAMPLE] * count)
    drawn = draw(p.log().expand(count, -1), torch.from_numpy(numbers))
    observed = torch.bincount(drawn, minlength=5).double()
    chi_square = ((observed - p * count) ** 2 / (p * count)).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, one in a thousand


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    scores = torch.randn(9, 3000, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = draw(scores, uniform)
    assert together.tolist() == [int(draw(scores[i : i + 1], uniform[i : i + 1])[0]) for i in range(9)]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    scores = torch.zeros(2, 600)
    scores[0, [77, 400]] = 3.0
    assert greedy(scores).tolist() == [77, 0]
