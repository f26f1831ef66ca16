"""Greedy, sampling and n."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.sampling import uniforms
from decoding.seam import FinishReason, Purpose
from tests.decoding.drive import run
from tests.decoding.rounding_error import of_entropies
from tests.decoding.strategies.table_oracle import LARGEST, logprob_error
from tests.decoding.table_model import TableModel, table_engine

PROMPT = (3, 1, 4, 1, 5)
HOT = LogitsParams(temperature=1.5)


def ask(**changes: object) -> Request:
    return dataclasses.replace(Request(PROMPT, stopping=StoppingParams(8), seed=3), **changes)  # type: ignore[arg-type]


def test_greedy_feeds_back_the_best_token() -> None:
    tokens = run(table_engine(), [ask(logits=LogitsParams(temperature=0))])[0].tokens()
    model = TableModel()
    history = list(PROMPT)
    for token in tokens:
        hashed = torch.tensor([[model._hash(np.array(history))]], dtype=torch.float64)
        best = model.head(hashed).argmax()
        assert token == int(best)
        history.append(token)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    first, again, other = (run(table_engine(), [ask(logits=HOT, seed=s)])[0].tokens() for s in (1, 1, 2))
    assert first == again != other


def test_n_choices_share_the_prompts_forward() -> None:
    model = TableModel()
    run(table_engine(models={"main": model}), [ask(strategy=Sampling(4), logits=HOT)])
    assert model.num_tokens == len(PROMPT) + 4 * 7


def test_choice_zero_of_n_is_the_single_request() -> None:
    single = run(table_engine(), [ask(logits=HOT)])[0].tokens()
    several = run(table_engine(), [ask(strategy=Sampling(3), logits=HOT)])[0]
    assert several.tokens(0) == single
    assert len({tuple(several.tokens(i)) for i in range(3)}) == 3


def test_each_choice_ends_by_itself() -> None:
    answer = run(table_engine(eos=tuple(range(0, 40, 5))), [ask(strategy=Sampling(6), logits=HOT)])[0]
    lengths = {len(c.token_ids) for c in answer.choices.values()}
    reasons = {c.finish.reason for c in answer.choices.values() if c.finish}
    assert len(lengths) > 1
    assert FinishReason.STOP in reasons


def test_the_score_is_the_sum_of_the_raw_logprobs() -> None:
    logprobs = LogprobsParams(output=0)
    answer = run(table_engine(), [ask(logits=LogitsParams(0.7, top_k=5), logprobs=logprobs)])[0]
    choice = answer.choices[0]
    assert choice.finish is not None
    assert choice.finish.score == sum(choice.logprobs)


def test_processed_logprobs_are_those_of_the_filtered_distribution() -> None:
    request = ask(logits=LogitsParams(top_k=1), logprobs=LogprobsParams(output=1, mode="processed"))
    choice = run(table_engine(), [request])[0].choices[0]
    assert choice.logprobs == [0.0] * 8
    raw = run(table_engine(), [dataclasses.replace(request, logprobs=LogprobsParams(1))])[0].choices[0]
    assert raw.token_ids == choice.token_ids
    assert all(lp < 0 for lp in raw.logprobs)


def test_no_tokens_asked_and_nothing_to_score_runs_no_forward() -> None:
    model = TableModel()
    answer = run(table_engine(models={"main": model}), [ask(strategy=Sampling(2), stopping=StoppingParams(0))])[0]
    assert model.num_forwards == 0
    assert [c.finish.reason for c in answer.choices.values() if c.finish] == [FinishReason.LENGTH] * 2


def test_the_position_of_a_draw_is_absolute() -> None:
    """The number behind the first token belongs to the prompt's last position."""
    flat = ask(logits=LogitsParams(temperature=1e6), stopping=StoppingParams(1), seed=9)
    token = run(table_engine(), [flat])[0].tokens()[0]
    number = uniforms([9], [0], [len(PROMPT) - 1], [Purpose.SAMPLE])[0]
    assert token == int(number * 40)


def test_a_trace_tells_what_each_choice_drew_and_from_what() -> None:
    request = ask(strategy=Sampling(2), logits=LogitsParams(0.7, top_k=3), logprobs=LogprobsParams(2))
    traced = run(table_engine(), [dataclasses.replace(request, trace=True)])[0]
    silent = run(table_engine(), [request])[0]
    assert traced.said == silent.said
    assert not silent.trace
    events = [event.values for event in traced.trace if event.kind == "draw"]
    assert [(e["choice"], e["token"]) for e in events] == [
        (i, traced.tokens(i)[step]) for step in range(8) for i in range(2)
    ]
    model = TableModel()
    hashed = torch.tensor([[model._hash(np.array(PROMPT))]], dtype=torch.float64)
    z = model.head(hashed)[0].double()
    p, kept = z.softmax(-1), (z / 0.7).masked_fill(z < z.topk(3).values[-1], -torch.inf).softmax(-1)
    first, token = events[0], traced.tokens(0)[0]
    assert first["raw_probability"] == pytest.approx(float(p[token]), rel=logprob_error())
    assert first["probability"] == pytest.approx(float(kept[token]), rel=logprob_error(LARGEST / 0.7))
    entropy = float(-(p * p.log()).sum())
    varentropy = float((p * (p.log() + entropy) ** 2).sum())
    errors = of_entropies(entropy, varentropy, float(p.log().abs().max()), model.vocab)
    assert first["entropy"] == pytest.approx(entropy, abs=errors[0])
    assert first["varentropy"] == pytest.approx(varentropy, abs=errors[1])
    best = p.sort(descending=True, stable=True)
    assert [c["token"] for c in first["candidates"]] == best.indices[:5].tolist()  # type: ignore[union-attr, index, call-overload]
    probabilities = [c["probability"] for c in first["candidates"]]  # type: ignore[union-attr, index, call-overload]
    assert probabilities == pytest.approx(best.values[:5].tolist(), rel=logprob_error())


def test_a_trace_needs_no_logprobs_and_asks_for_none() -> None:
    traced = run(table_engine(), [ask(logits=HOT, trace=True)])[0]
    silent = run(table_engine(), [ask(logits=HOT)])[0]
    assert traced.said == silent.said
    assert [event.step for event in traced.trace] == list(range(1, 9))


def test_processed_logprobs_stay_the_same_under_a_trace() -> None:
    request = ask(logits=LogitsParams(0.7, top_k=9), logprobs=LogprobsParams(7, mode="processed"))
    assert (
        run(table_engine(), [dataclasses.replace(request, trace=True)])[0].said
        == run(table_engine(), [request])[0].said
    )
