"""Contrastive search over the table model; `test_layers_goldens.py` compares it with transformers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from decoding.contract.params import (
    Contrastive,
    LogitsParams,
    LogprobsMode,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
)
from decoding.seam import FinishReason
from decoding.strategies.parts.hidden_bank import HiddenBank
from tests.decoding.drive import run
from tests.decoding.rounding_error import EPS, of_sum
from tests.decoding.strategies.table_oracle import logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine

PROMPT = (3, 1, 4, 1, 5)
GREEDY = LogitsParams(temperature=0)


def ask(alpha: float = 0.6, k: int = 4, **changes: Any) -> Request:
    request = Request(PROMPT, Contrastive(alpha, k), GREEDY, StoppingParams(8))
    return dataclasses.replace(request, **changes)


def derived(alpha: float, k: int, count: int) -> list[int]:
    """The definition, every hidden state computed anew."""
    model, history = TableModel(), list(PROMPT)
    for _ in range(count):
        states = states_of(model, history)
        p, candidates = model.head(states[-1:])[0].softmax(-1).sort(descending=True, stable=True)
        h = torch.stack([states_of(model, [*history, int(v)])[-1] for v in candidates[:k]])
        cosines = cosine_similarity(h.unsqueeze(1), states.unsqueeze(0), dim=-1)  # [k, T]
        best = ((1 - alpha) * p[:k] - alpha * cosines.amax(dim=1)).argmax()
        history.append(int(candidates[best]))
    return history[len(PROMPT) :]


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.2, 8), (1.0, 3), (0.6, 100)])
def test_it_takes_the_likely_token_that_is_least_like_the_past(alpha: float, k: int) -> None:
    tokens = run(table_engine(num_pages=600), [ask(alpha, k)])[0].tokens()
    assert tokens == derived(alpha, k, 8)
    assert tokens != derived(0, 1, 8)


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize(("alpha", "k"), [(0.0, 5), (0.6, 1)])
def test_without_a_penalty_or_a_choice_it_is_greedy_and_says_the_same(alpha: float, k: int, mode: LogprobsMode) -> None:
    logits = LogitsParams(0, repetition_penalty=1.4)
    request = ask(alpha, k, logits=logits, logprobs=LogprobsParams(3, 2, mode))
    (answer,) = run(table_engine(), [request])
    (greedy,) = run(table_engine(), [dataclasses.replace(request, strategy=Sampling())])
    assert answer.said == greedy.said


def test_log_probs_are_those_of_the_token_taken() -> None:
    """Processed with top_k = 1 of 5 candidates would be 0: here it is the share after the penalties alone."""
    request = ask(0.9, 5, logprobs=LogprobsParams(2))
    (answer,) = run(table_engine(), [request])
    model, history = TableModel(), list(PROMPT)
    for token, logprob, top in zip(answer.tokens(), answer.choices[0].logprobs, answer.choices[0].top, strict=True):
        logp = model.head(states_of(model, history)[-1:])[0].log_softmax(-1)
        assert logprob == pytest.approx(float(logp[token]), abs=logprob_error())
        assert [i for i, _ in top] == logp.sort(descending=True, stable=True).indices[:2].tolist()
        history.append(token)


def test_the_temperature_of_a_sampling_request_sharpens_p() -> None:
    """At a low one the likeliest token outweighs any penalty; 1 leaves p alone."""
    cold, warm = (run(table_engine(), [ask(0.1, logits=LogitsParams(t))])[0].tokens() for t in (0.02, 1.0))
    assert warm == derived(0.1, 4, 8)
    assert cold == derived(0.0, 1, 8) != warm


def test_a_token_costs_k_positions_and_nothing_runs_after_the_last() -> None:
    model = TableModel()
    run(table_engine(models={"main": model}), [ask(k=4)])
    assert model.num_tokens == len(PROMPT) + 4 * 8
    assert model.num_forwards == 1 + 8


def test_the_last_token_is_fed_too_and_so_takes_a_position() -> None:
    """A model of just one position less failed in the middle of the text, at a position that it does not have."""
    request = ask()
    assert request.max_length == len(PROMPT) + 8
    (fitting,) = run(table_engine(max_model_len=request.max_length), [request])
    (refused,) = run(table_engine(max_model_len=request.max_length - 1), [request])
    assert fitting.failure is None
    assert refused.failure is not None
    assert refused.failure.code == "never_fits"


def test_it_stops_at_a_stop_token_and_feeds_no_more() -> None:
    tokens = derived(0.6, 4, 8)
    stop = StoppingParams(8, stop_token_ids=(tokens[3],))
    model = TableModel()
    (answer,) = run(table_engine(models={"main": model}), [ask(stopping=stop)])
    assert answer.tokens() == tokens[: tokens.index(tokens[3]) + 1]
    assert model.num_forwards == 1 + len(answer.tokens())


def test_excluded_tokens_are_no_candidates() -> None:
    logits = LogitsParams(0, allowed_token_ids=(6, 7))
    request = ask(1.0, 9, logits=logits, trace=True)
    (answer,) = run(table_engine(), [request])
    assert set(answer.tokens()) <= {6, 7}
    assert all(set(e.values["tokens"]) <= {6, 7} for e in answer.trace)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_at_once", [True, False])
def test_where_nothing_is_possible_the_request_fails(is_at_once: bool) -> None:
    """Only EOS is allowed, and the minimum length forbids it."""
    allowed = (6,) if is_at_once else (6, 7)
    bias = () if is_at_once else ((7, -float("1e38")),)
    logits = LogitsParams(0, allowed_token_ids=allowed, logit_bias=bias)
    stopping = StoppingParams(8, min_tokens=8)
    (answer,) = run(table_engine(eos=(6,)), [ask(k=2, logits=logits, stopping=stopping)])
    if is_at_once:
        assert answer.failure is not None
        assert answer.failure.code == "nothing_to_draw"
    else:
        assert answer.choices[0].finish is not None
        assert answer.choices[0].finish.reason is FinishReason.LENGTH


def test_the_trace_shows_every_candidate_with_probability_and_penalty() -> None:
    (answer,) = run(table_engine(), [ask(0.6, 4, trace=True)])
    assert [e.values["token"] for e in answer.trace] == answer.tokens()
    assert [e.step for e in answer.trace] == list(range(8))
    for event in answer.trace:
        tokens, p, penalties, scores = (event.values[key] for key in ("tokens", "probabilities", "penalties", "scores"))
        expected = [0.4 * a - 0.6 * b for a, b in zip(p, penalties, strict=True)]  # type: ignore[arg-type, operator]
        assert scores == pytest.approx(expected, abs=3 * EPS / 2)  # numbers up to 1, and three operations, that round
        assert event.values["token"] == tokens[expected.index(max(expected))]  # type: ignore[index]


def test_pause_tokens_count_as_context_and_not_as_history() -> None:
    paused = ask(pause_ids=(9, 9), logits=LogitsParams(0, repetition_penalty=1.5))
    unseen = dataclasses.replace(paused, prompt_ids=(*PROMPT, 9, 9), pause_ids=(), logits=GREEDY)
    unpenalised = dataclasses.replace(paused, logits=GREEDY)
    assert run(table_engine(), [unpenalised])[0].tokens() == run(table_engine(), [unseen])[0].tokens()
    assert run(table_engine(), [paused])[0].usage is not None


def test_the_bank_grows_by_doubling_and_finds_the_nearest() -> None:
    units = torch.nn.functional.normalize(torch.randn(100, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    bank, capacities = HiddenBank(), set()
    for unit in units:
        bank.extend(unit.unsqueeze(0))
        capacities.add(len(bank._units))
    assert len(capacities) <= 8
    error = 2 * of_sum(7)  # of products of unit vectors
    torch.testing.assert_close(bank.nearest(-units[:3]), (units @ -units[:3].T).amax(dim=0), rtol=0, atol=error)
