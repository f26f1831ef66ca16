"""Beams with many ending ids: the candidates are the same ones, but not all of them are listed."""

from __future__ import annotations

import pytest

from decoding.contract.params import Beam, BeamSample, GroupBeam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.strategies import beam, beam_sample, group_beam
from tests.decoding.drive import Answer, run
from tests.decoding.table_model import table_engine

ENDINGS = tuple(range(14, 40))
WAYS = {
    "beam": Beam(2, 3),
    "early": Beam(3, 3, early_stopping=True),
    "groups": GroupBeam(2, 4, num_beam_groups=2, diversity_penalty=0.7),
    "beam_sample": BeamSample(2, 3),
}


def answers(name: str, penalty: float, seed: int) -> Answer:
    logits = LogitsParams(0.0 if name != "beam_sample" else 1.0, repetition_penalty=penalty)
    stopping = StoppingParams(max_tokens=9, min_tokens=2, stop_token_ids=ENDINGS)
    request = Request(
        (seed % 9, 3, 5), WAYS[name], logits, stopping=stopping, logprobs=LogprobsParams(output=2), seed=seed
    )
    return run(table_engine(), [request])[0]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", ["beam", "early", "groups"])
def test_what_is_found_does_not_depend_on_how_candidates_are_listed(
    monkeypatch: pytest.MonkeyPatch, name: str, penalty: float
) -> None:
    listed = [answers(name, penalty, seed).said for seed in range(6)]
    monkeypatch.setattr(beam, "MOST_LISTED", 1)
    monkeypatch.setattr(group_beam, "MOST_LISTED", 1)
    assert [answers(name, penalty, seed).said for seed in range(6)] == listed


def test_a_wide_draw_is_the_same_again_and_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam_sample, "MOST_LISTED", 1)
    assert answers("beam_sample", 1.0, 1).said == answers("beam_sample", 1.0, 1).said
    assert len({str(answers("beam_sample", 1.0, seed).tokens()) for seed in range(6)}) > 1
