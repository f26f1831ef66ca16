"""Beam search over what temperature and filters leave, against the loop that defines it: nothing is drawn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from decoding.contract.params import Beam, LogitsParams, LogprobsParams, Request, StoppingParams
from tests.decoding.drive import run
from tests.decoding.strategies.table_oracle import LARGEST, logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine

PROMPT = (3, 1, 4, 1, 5)
NUM_TOKENS = 12


def logits_after(ids: list[int]) -> torch.Tensor:  # [vocab]
    model = TableModel()
    return model.head(states_of(model, ids)[-1:])[0]


def beam_search(num_beams: int, temperature: float, top_k: int | None) -> list[tuple[list[int], float]]:
    """The beams at the end, best first; log-probs of the scaled and filtered logits add up."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(NUM_TOKENS):
        extended = []
        for output, score in beams:
            logits = logits_after([*PROMPT, *output]) / temperature
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[-1]] = -float("inf")
            logp = F.log_softmax(logits, dim=-1)
            best = logp.topk(min(num_beams, top_k or num_beams))
            extended += [([*output, int(i)], score + float(s)) for s, i in zip(best.values, best.indices, strict=True)]
        beams = sorted(extended, key=lambda beam: -beam[1])[:num_beams]
    return beams


@pytest.mark.parametrize(
    ("num_beams", "temperature", "top_k"), [(1, 0.8, 5), (3, 1.0, 4), (5, 0.8, 9), (4, 2.5, None), (5, 1.5, 3)]
)
def test_log_probs_of_what_they_leave_add_up(num_beams: int, temperature: float, top_k: int | None) -> None:
    expected = beam_search(num_beams, temperature, top_k)
    logits = LogitsParams(temperature, top_k or 0)
    request = Request(PROMPT, Beam(num_beams, num_beams, 0.0), logits, StoppingParams(NUM_TOKENS), LogprobsParams(0))
    (answer,) = run(table_engine(), [request])
    assert [answer.tokens(i) for i in range(num_beams)] == [output for output, _ in expected]
    finishes = [answer.choices[i].finish for i in range(num_beams)]
    error = NUM_TOKENS * logprob_error(LARGEST / temperature)
    assert [f.score for f in finishes if f is not None] == pytest.approx([s for _, s in expected], abs=error)


def test_a_temperature_changes_which_beam_is_best() -> None:
    assert beam_search(5, 0.3, None)[0][0] != beam_search(5, 3.0, None)[0][0]


def test_without_either_scores_are_those_of_plain_beams() -> None:
    """A penalty acts on log-probs there, as with Hugging Face."""
    request = Request(PROMPT, Beam(2, 4), LogitsParams(repetition_penalty=1.4), StoppingParams(NUM_TOKENS))
    cold = dataclasses.replace(request, logits=dataclasses.replace(request.logits, temperature=0.0))
    neutral, at_0 = (run(table_engine(), [asked])[0] for asked in (request, cold))
    assert neutral.said == at_0.said
