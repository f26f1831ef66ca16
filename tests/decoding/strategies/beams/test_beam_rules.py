"""Single rules of the beam searches that recorded runs seldom turn on, each shown on readings made up for it."""

from __future__ import annotations

from typing import cast

import pytest

from decoding.contract.params import Beam, GroupBeam, Request, StoppingParams, StrategyParams
from decoding.contract.params.beams import EarlyStopping
from decoding.seam import Move, Observation, Reading, RowId, RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies import build

EOS, OTHER_EOS = 3, 4
Top = tuple[tuple[int, float], ...]


class Played:
    """A search over a prompt of one token that is shown made-up readings, one `top` for each row of its last Move."""

    def __init__(self, strategy: StrategyParams, max_tokens: int) -> None:
        params = StoppingParams(max_tokens)
        stopping = Stopping(params, (EOS, OTHER_EOS))
        self._strategy = build(Request((1,), strategy, stopping=params), stopping, cast(Tools, None))
        self.move = self._strategy.begin((1,))

    def show(self, *tops: Top) -> Move:
        assert len(tops) == len(self.move.feeds)
        rows = (RowView(RowId(i), 1, (Reading(0, top=top),)) for i, top in enumerate(tops))
        self.move = self._strategy.step(Observation(tuple(rows)))
        return self.move

    @property
    def answers(self) -> list[tuple[int, ...]]:
        assert not self.move.feeds
        return [emit.token_ids for emit in self.move.emit]


@pytest.mark.parametrize(("early_stopping", "goes_on"), [(False, False), (True, False), ("never", True)])
def test_never_reckons_with_the_longest_output_and_the_others_with_the_present_one(
    early_stopping: EarlyStopping, goes_on: bool
) -> None:
    """One is finished with -0.5; the running beam's -0.9 is worse now, but over ten tokens it could be -0.09."""
    played = Played(Beam(1, 1, 1.0, early_stopping=early_stopping), 10)
    assert bool(played.show(((EOS, -0.5), (7, -0.9), (8, -2.0))).feeds) == goes_on


@pytest.mark.parametrize("strategy", [Beam(2, 2, 0.0, early_stopping=True), GroupBeam(2, 2, 1, 0.0, 0.0, True)])
def test_an_ending_beyond_the_first_k_candidates_is_passed_over(strategy: StrategyParams) -> None:
    played = Played(strategy, 2)
    played.show(((EOS, -0.1), (7, -0.2), (OTHER_EOS, -0.3), (8, -0.4), (9, -5.0), (10, -6.0)))
    played.show(((7, -1.0), (8, -9.0)), ((7, -9.0), (8, -9.1)))
    assert played.answers == [(EOS,), (7, 7)]


def test_a_group_that_is_over_goes_on_counting_as_the_first_eos() -> None:
    """The second group would end with it in the third step; the penalty puts it behind, where it is passed over."""
    others = ((10, -9.0), (11, -9.0), (12, -9.0))
    played = Played(GroupBeam(2, 2, 2, 1.0, 0.0, True), 3)
    played.show(((7, -0.1), (8, -0.2), *others))
    played.show(((EOS, -0.1), (9, -0.2), *others), ((9, -0.1), (5, -0.4), *others))
    assert [feed.tokens for feed in played.move.feeds] == [(5,)]
    played.show(((EOS, -0.1), (6, -0.3), *others))
    assert played.answers == [(7, EOS), (8, 5, 6)]


def test_a_group_counts_the_tokens_of_the_groups_before_it() -> None:
    played = Played(GroupBeam(1, 3, 3, 0.15), 5)
    played.show(((7, -0.1), (8, -0.2), (9, -0.3), (10, -9.0), (11, -9.0), (12, -9.0)))
    assert [feed.tokens for feed in played.move.feeds] == [(7,), (8,), (7,)]


def test_a_beam_that_nothing_continues_is_not_fed() -> None:
    played = Played(Beam(1, 2), 5)
    played.show(((7, -0.1), (8, -0.2)))
    played.show(((7, -0.1), (9, -0.2)), ((7, -9.0), (8, -9.1)))
    assert [(feed.parent, feed.tokens) for feed in played.move.feeds] == [(RowId(0), (7,)), (RowId(0), (9,))]
    assert [emit.token_ids for emit in played.move.emit] == [(7,)]
