"""What a length costs."""

from __future__ import annotations

import pytest

from decoding.contract.params.beams import LengthPenaltyType
from decoding.strategies.parts.ranking import LengthPenalty


@pytest.mark.parametrize("kind", ["hf", "gnmt"])
@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.0, 0.6, 1.0, 2.0])
def test_the_bound_is_the_best_that_a_path_can_reach_by_going_on(alpha: float, kind: LengthPenaltyType) -> None:
    penalty = LengthPenalty(alpha, kind)
    reachable = [penalty.score(-3.0, length) for length in range(4, 17)]
    assert penalty.bound(-3.0, 4, 16) == max(reachable)
