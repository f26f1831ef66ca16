"""Temperatures that change from position to position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.contract.params import Adapt, Edt, LogitsParams, StoppingParams
from decoding.logits.pipeline import Pipelines
from tests.decoding.logits.rows import history, kept, run, run_all
from tests.decoding.rounding_error import EPS, of_entropies

NOWHERE = history([0])
PIECES = (b"\n", b"  ", b"x", b"", b"y:\n", b"\t", b"\n  ", b"a b")
NEWLINES, INDENTS = (0, 4), (1, 5)
CODE = Pipelines((2,), PIECES)


@settings(deadline=None)
@given(
    st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=20),
    st.floats(0.05, 3),
    st.floats(0.1, 2),
    st.floats(0.3, 0.99),
)
def test_edt_is_its_closed_form(values: list[float], theta: float, t0: float, base: float) -> None:
    row = torch.tensor(values)
    p = row.double().softmax(-1)
    entropy = float(-(p * p.log()).sum())
    got = run(row, LogitsParams(temperature=t0, edt=Edt(theta, base)), NOWHERE)
    if entropy > 1e-3 and t0 * base ** (theta / entropy) > 1e-4:
        expected = row / (t0 * base ** (theta / entropy))
        torch.testing.assert_close(got, expected, rtol=edt_error(row, theta, base), atol=0)


def edt_error(row: torch.Tensor, theta: float, base: float) -> float:
    """Relative: the exponent's, which is relatively off as the entropy is, and what multiplications and pow round."""
    logp = row.double().log_softmax(-1)
    entropy = float(-(logp.exp() * logp).sum())
    error = 2 * of_entropies(entropy, 0.0, float(logp.abs().max()), len(row))[0]  # hypothesis finds the worst case
    exponent = abs(math.log(base)) * theta / entropy
    return math.expm1(exponent * (error / entropy + 2 * EPS)) + 4 * EPS


def test_edt_measures_the_entropy_before_any_penalty() -> None:
    row, theta = torch.tensor([2.0, 1.0, 0.0, -1.0]), 0.7
    params = LogitsParams(edt=Edt(theta), allowed_token_ids=(0, 1), repetition_penalty=2.0)
    entropy = float(torch.distributions.Categorical(logits=row).entropy())
    rows = torch.stack((row * 3, row, row * 2))
    got = run_all(rows, [LogitsParams(), params, LogitsParams()], [NOWHERE, history([1]), NOWHERE])
    expected = torch.tensor([2.0, 0.5]) / 0.8 ** (theta / entropy)
    torch.testing.assert_close(got[1, :2], expected, rtol=2 * edt_error(row, theta, 0.8), atol=0)
    assert kept(got[1]) == [0, 1]


def test_edt_is_greedy_where_the_model_is_sure() -> None:
    certain, cold = torch.tensor([0.0, 60.0, 60.0 - 40]), torch.tensor([0.0, 4.0, 4.0, 1.0])
    assert kept(run(certain, LogitsParams(edt=Edt(0.01)), NOWHERE)) == [1]
    assert kept(run(cold, LogitsParams(edt=Edt(1000.0)), NOWHERE)) == [1]
    assert run(cold, LogitsParams(edt=Edt(1000.0)), NOWHERE)[1] == 4.0


def test_edt_without_theta_or_with_base_one_is_the_static_temperature() -> None:
    build = Pipelines(()).build
    static = build(LogitsParams(temperature=0.6), StoppingParams())
    assert build(LogitsParams(temperature=0.6, edt=Edt(0.0)), StoppingParams()) == static
    assert build(LogitsParams(temperature=0.6, edt=Edt(2.0, 1.0)), StoppingParams()) == static
    assert build(LogitsParams(temperature=0, edt=Edt(2.0)), StoppingParams()).warpers == ()


def authors_temperature(text: list[int], hot: float, cold: float) -> float:
    """The loop of the authors' script, over the ids from the prompt's last on."""
    position, temperature = 0, cold
    for previous in text:
        if previous in NEWLINES:
            position, temperature = 1, cold
        elif previous in INDENTS and position == 1:
            temperature = hot
        else:
            position, temperature = position + 1 if position else 2, cold
    return temperature


def chosen(output: list[int], adapt: Adapt, prompt: Sequence[int] = (2,)) -> float:
    """The temperature, read off a row of ones."""
    seen = history(prompt, output)
    return 1 / float(run(torch.ones(len(PIECES)), LogitsParams(adapt=adapt), seen, pipelines=CODE)[0])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 7]), max_size=12))
def test_adapt_follows_the_authors_loop(output: list[int]) -> None:
    for last in range(6):
        expected = authors_temperature([last, *output], 0.5, 0.25)
        assert chosen(output, Adapt(0.5, 0.25), prompt=[2, last]) == pytest.approx(expected, rel=EPS)  # two reciprocals


def test_adapt_heats_the_first_word_behind_a_prompt_that_ends_with_a_newline() -> None:
    """As HumanEval's do: the indentation is cold, the word behind it hot, the rest cold."""
    newline, indent, word = NEWLINES[0], INDENTS[0], 2
    texts: tuple[list[int], ...] = ([], [indent], [indent, word], [indent, word, word])
    assert [chosen(text, Adapt(0.8, 0.3), prompt=[word, newline]) for text in texts] == pytest.approx(
        [0.3, 0.8, 0.3, 0.3], rel=EPS
    )
    assert chosen([], Adapt(0.8, 0.3), prompt=[newline, indent]) == pytest.approx(0.8, rel=EPS)


@pytest.mark.parametrize(("output", "hot"), [([6], True), ([2, 6, 1], True), ([6, 2], False), ([6, 0], False)])
def test_adapt_takes_a_token_of_newline_and_indentation_for_both(output: list[int], hot: bool) -> None:
    assert chosen(output, Adapt(0.5, 0.25)) == (0.5 if hot else 0.25)


def test_adapt_may_call_the_first_token_hot() -> None:
    assert chosen([], Adapt(0.5, 0.25)) == 0.25
    assert chosen([], Adapt(0.5, 0.25, first_token=True)) == 0.5
    assert chosen([2], Adapt(0.5, 0.25, first_token=True)) == 0.25


def test_adapt_at_temperature_zero_keeps_the_best_only() -> None:
    params = LogitsParams(adapt=Adapt(hot=0.5, cold=0.0), temperature=0)
    row = torch.tensor([1.0, 3.0, 3.0, 0, 0, 0, 0, 0])
    cold, hot = run_all(row.expand(2, -1), [params] * 2, [history([0], [2]), history([0], [0, 1])], pipelines=CODE)
    assert kept(cold) == [1]
    assert torch.equal(hot, row / 0.5)


def test_ids_beyond_the_known_ones_are_words() -> None:
    assert chosen([0, 1, 99], Adapt(0.5, 0.25)) == 0.25
    assert chosen(np.array([99, 0, 1]).tolist(), Adapt(0.5, 0.25)) == 0.5
