"""Steps that look back at the history, against brute force where Hugging Face has no counterpart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.contract.params import LogitsParams, StoppingParams
from decoding.logits.pipeline import Pipelines
from tests.decoding.logits.rows import history, kept, run, run_all
from tests.decoding.rounding_error import EPS

VOCAB = 12
IDS = st.lists(st.integers(0, VOCAB - 1), max_size=14)


def ramp() -> torch.Tensor:
    """Negative, zero and positive scores."""
    return torch.linspace(-3, 2.5, VOCAB)


def penalised(row: torch.Tensor, ids: set[int], theta: float) -> list[float]:
    return [x if i not in ids else x * theta if x < 0 else x / theta for i, x in enumerate(row.tolist())]


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), IDS, st.integers(0, 8), st.booleans())
@settings(deadline=None)
def test_the_repetition_penalty_sees_what_scope_and_window_say(
    prompt: list[int], output: list[int], window: int, is_output_only: bool
) -> None:
    params = LogitsParams(
        repetition_penalty=1.5,
        repetition_penalty_scope="output" if is_output_only else "prompt+output",
        repetition_penalty_window=window,
    )
    scope = output if is_output_only else prompt + output
    seen = scope[-window:] if window else scope
    got = run(ramp(), params, history(prompt, output))
    assert got.tolist() == pytest.approx(penalised(ramp(), set(seen), 1.5), rel=EPS / 2)


def test_a_window_longer_than_the_output_equals_none() -> None:
    seen = history([0, 1], [2, 3, 3])
    whole = LogitsParams(repetition_penalty=1.3, repetition_penalty_scope="output")
    windowed = LogitsParams(repetition_penalty=1.3, repetition_penalty_scope="output", repetition_penalty_window=9)
    assert torch.equal(run(ramp(), whole, seen), run(ramp(), windowed, seen))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 5))
@settings(deadline=None)
def test_no_n_gram_comes_twice(ids: list[int], n: int, split: int) -> None:
    grams = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    allowed = [i for i in range(VOCAB) if (*ids[len(ids) - n + 1 :], i) not in grams]
    got = run(ramp(), LogitsParams(no_repeat_ngram_size=n), history(ids[:split], ids[split:]))
    assert kept(got) == allowed


def test_a_bad_word_is_cut_at_its_last_id_only_after_the_others() -> None:
    params = LogitsParams(bad_words=((7,), (3, 4), (1, 3, 5), (2, 3, 6), (3, 8)))
    assert kept(run(ramp(), params, history([1, 3]))) == [0, 1, 2, 3, 5, 6, 9, 10, 11]
    assert kept(run(ramp(), params, history([0, 1], [3]))) == [0, 1, 2, 3, 6, 9, 10, 11]
    assert kept(run(ramp(), params, history([3, 1]))) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_eos_alone_is_no_bad_word_and_builds_no_step() -> None:
    chain = Pipelines((2, 3)).build(LogitsParams(bad_words=((2,), (3,))), StoppingParams())
    assert chain.processors == ()
    assert kept(run(ramp(), LogitsParams(bad_words=((2,), (1, 2))), history([0, 1]))) == [0, 1, *range(3, VOCAB)]


@pytest.mark.parametrize(("num_output", "lowered"), [(0, 2.0), (3, 0.5), (4, 0), (9, 0)])
def test_eos_rises_to_its_own_score_as_the_output_grows(num_output: int, lowered: float) -> None:
    params = LogitsParams(eos_penalty=0.5, eos_penalty_until=4)
    got = run(ramp(), params, history([5], [6] * num_output), pipelines=Pipelines((1, 9)))
    expected = ramp()
    expected[[1, 9]] -= lowered
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("start", "factor", "t"), [(2, 1.5, 2), (2, 1.5, 3), (2, 1.5, 12), (0, 0.5, 4)])
def test_eos_grows_exponentially_after_the_start(start: int, factor: float, t: int) -> None:
    params = LogitsParams(exponential_decay_length_penalty=(start, factor))
    got = run(ramp(), params, history([5], [6] * t), pipelines=Pipelines((1, 9)))
    growth = factor ** (t - start) - 1 if t > start else 0
    expected = ramp()
    expected[[1, 9]] += expected[[1, 9]].abs() * growth
    error = 3 * EPS / 2 * ramp().abs() * (1 + growth)  # the growth, its product and the sum are rounded
    assert ((got - expected).abs() <= error).all()


def test_eos_grown_beyond_all_bounds_is_certain_and_finite() -> None:
    params = LogitsParams(exponential_decay_length_penalty=(0, 3.0), temperature=0.01)
    got = run(ramp(), params, history([5], [6] * 5000))
    assert torch.isfinite(got).all()
    assert got.softmax(-1)[2] == 1


def test_an_eos_that_min_tokens_excludes_does_not_become_nan() -> None:
    params = LogitsParams(exponential_decay_length_penalty=(0, 1.5), eos_penalty=-1, eos_penalty_until=9)
    got = run(ramp(), params, history([5], [6]), StoppingParams(max_tokens=9, min_tokens=3))
    assert got[2] == -math.inf
    assert not got.isnan().any()


def test_the_repetition_penalty_comes_before_the_counts_with_a_window_and_without() -> None:
    seen, row = history([5], [0]), torch.tensor([[2.0], [2.0]])
    whole = LogitsParams(repetition_penalty=2, frequency_penalty=1)
    windowed = LogitsParams(repetition_penalty=2, repetition_penalty_window=3, frequency_penalty=1)
    got = run_all(row.expand(2, 6), [whole, windowed], [seen, seen])
    assert got[:, 0].tolist() == [0.0, 0.0]


def test_the_decay_comes_after_the_penalties() -> None:
    params = LogitsParams(repetition_penalty=2, exponential_decay_length_penalty=(0, 3.0))
    got = run(torch.full((4,), 4.0), params, history([0], [2]))
    assert got.tolist() == [2, 4, 2 + 2 * 2, 4]
