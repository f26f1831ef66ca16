"""Diverse beam search beyond the goldens: the penalty, its two ways of ranking, reports."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import decoding.strategies.group_beam
from decoding.contract.params import GroupBeam, LogitsParams, LogprobsParams, Request, StoppingParams
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.table_oracle import logprob_error, table_logprobs
from tests.decoding.table_model import TableModel, table_engine

PROMPT = (3, 1, 4, 1, 5)
EOS = (3, 11, 19)
REQUEST = Request(PROMPT, GroupBeam(4, 4, 4, 100.0), stopping=StoppingParams(8))


def answer(request: Request, eos: tuple[int, ...] = EOS) -> Answer:
    (found,) = run(table_engine(eos=eos), [request])
    assert found.failure is None, found.failure
    return found


def test_groups_that_may_not_agree_never_take_the_same_token_in_one_step() -> None:
    found = answer(REQUEST, eos=())
    for column in zip(*(found.tokens(i) for i in range(4)), strict=True):
        assert len(set(column)) == 4


def test_without_a_penalty_every_group_finds_the_same() -> None:
    found = answer(dataclasses.replace(REQUEST, strategy=GroupBeam(4, 4, 4, 0.0)))
    assert len({tuple(found.tokens(i)) for i in range(4)}) == 1


@pytest.mark.parametrize("shape", [(4, 2), (6, 3), (4, 4), (6, 2)])
def test_ranking_the_best_alone_equals_ranking_the_whole_vocabulary(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without processors only the best are read, with them all scores; forcing the second must change nothing."""
    strategy = GroupBeam(shape[0], *shape, 0.8)
    asked = dataclasses.replace(REQUEST, strategy=strategy, logprobs=LogprobsParams(3, mode="processed"))
    eos = tuple(range(0, 40, 7))
    few = answer(asked, eos)
    monkeypatch.setattr(decoding.strategies.group_beam, "is_plain", lambda request: False)
    every = answer(asked, eos)
    assert [few.tokens(i) for i in range(shape[0])] == [every.tokens(i) for i in range(shape[0])]
    for i in range(shape[0]):
        assert few.choices[i].logprobs == pytest.approx(every.choices[i].logprobs, abs=logprob_error())
        assert [[t for t, _ in top] for top in few.choices[i].top] == [
            [t for t, _ in top] for top in every.choices[i].top
        ]


class CoinModel(TableModel):
    """Either token 0 or token 1, with the same probability, whatever came before."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.full((len(hidden), self.vocab), -1e4)
        scores[:, :2] = 0
        return scores


def test_of_equals_the_one_finished_first_stays() -> None:
    """As in transformers' BeamHypotheses; the later one took its place here."""
    strategy = GroupBeam(1, 1, 1, early_stopping="never")
    (found,) = run(
        table_engine(models={"main": CoinModel()}, eos=(0,)), [dataclasses.replace(REQUEST, strategy=strategy)]
    )
    assert found.tokens() == [0]


def test_processors_see_scores_after_the_penalty() -> None:
    """A repetition penalty multiplies: before it, the diversity penalty weighs more than behind it."""
    logits = LogitsParams(repetition_penalty=2.0)
    asked = dataclasses.replace(REQUEST, strategy=GroupBeam(2, 2, 2, 0.5), logits=logits, stopping=StoppingParams(1))
    found = answer(dataclasses.replace(asked, logprobs=LogprobsParams(0, mode="processed")))
    first, second = (found.choices[i] for i in range(2))
    raw = table_logprobs(PROMPT)
    assert second.logprobs[0] == pytest.approx(
        (float(raw[second.token_ids[0]]) - 0.5 * (first.token_ids == second.token_ids))
        * (2.0 if second.token_ids[0] in PROMPT else 1.0),
        abs=2.0 * logprob_error(),
    )


def test_raw_logprobs_leave_the_penalty_out() -> None:
    choice = answer(dataclasses.replace(REQUEST, logprobs=LogprobsParams(1))).choices[3]
    for t, token in enumerate(choice.token_ids):
        raw = table_logprobs((*PROMPT, *choice.token_ids[:t]))
        assert choice.logprobs[t] == pytest.approx(float(raw[token]), abs=logprob_error())
        assert choice.top[t][0][0] == int(raw.argmax())
