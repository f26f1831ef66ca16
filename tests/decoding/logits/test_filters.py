"""Filters against their formulas, and the rules on which Hugging Face is silent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.contract.params import LogitsParams
from tests.decoding.logits.rows import history, kept, run, run_all
from tests.decoding.rounding_error import of_entropies, of_log_softmax, of_sum, ulp

NOWHERE = history([0])
SCORES = st.lists(
    st.one_of(st.just(-math.inf), st.integers(-6, 6).map(float), st.floats(-9, 9, width=32)), min_size=1, max_size=40
).filter(lambda values: max(values) > -math.inf)


LARGEST = 9.0


def border(values: list[float], entropy: float) -> tuple[float, float]:
    """How far rounding may move a surprise from the entropy and, relatively, a probability; hypothesis finds the worst
    case, twice what is usual.
    """
    logp = torch.tensor(values, dtype=torch.float64).log_softmax(-1)
    largest = float(logp[logp.isfinite()].abs().max())
    share = of_log_softmax(max(largest, 1.0), max(len(values), 2)) + of_sum(len(values))
    return 2 * (share + of_entropies(entropy, 0.0, max(largest, 1.0), max(len(values), 2))[0]), 2 * share


def filtered(values: list[float], **fields: float) -> list[int]:
    return kept(run(torch.tensor(values), LogitsParams(**fields), NOWHERE))  # type: ignore[arg-type]


@settings(deadline=None)
@given(SCORES, st.floats(0.1, 3))
def test_top_n_sigma_keeps_what_lies_within_n_deviations_of_the_best(values: list[float], n: float) -> None:
    finite = torch.tensor([v for v in values if v > -math.inf], dtype=torch.float64)
    s = float(finite.std()) if len(finite) > 1 else 0.0
    floor = float(finite.max()) - n * s
    border = 2 * (n * of_sum(40) * (LARGEST + s) + ulp(LARGEST + n * s))  # a deviation is off as its mean and its sum
    got = filtered(values, top_n_sigma=n)
    for i, v in enumerate(values):
        if v == -math.inf or abs(v - floor) > border:
            assert (i in got) == (v >= floor)


def test_top_n_sigma_comes_after_the_penalties_and_survives_any_temperature() -> None:
    row = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 3
    penalised = row.clone()
    penalised[row.argmax()] /= 5
    expected = [i for i in range(200) if penalised[i] >= penalised.max() - penalised.std()]
    for t in (0.3, 1.0, 2.5):
        params = LogitsParams(top_n_sigma=1.0, temperature=t, repetition_penalty=5.0)
        assert kept(run(row, params, history([int(row.argmax())]))) == expected


def test_top_n_sigma_measures_the_row_before_top_k_cuts_it() -> None:
    assert filtered([5.0, 4.0, 3.0, *[-10.0] * 20], top_n_sigma=1.0, top_k=3) == [0, 1, 2]


def test_equal_scores_or_a_single_one_have_no_deviation_and_stay() -> None:
    assert filtered([1.7] * 9, top_n_sigma=1.0) == list(range(9))
    assert filtered([-math.inf, 0.3, -math.inf], top_n_sigma=1.0) == [1]


@settings(deadline=None)
@given(SCORES, st.floats(0.02, 0.98), st.integers(1, 5))
def test_typical_keeps_the_ids_whose_surprise_is_nearest_to_the_entropy(
    values: list[float], mass: float, keep: int
) -> None:
    p = torch.tensor(values, dtype=torch.float64).softmax(-1)
    finite = [i for i, v in enumerate(values) if v > -math.inf]
    entropy = -sum(float(p[i] * p[i].log()) for i in finite)
    distance = {i: abs(-float(p[i].log()) - entropy) for i in finite}
    got = filtered(values, typical_p=mass, min_tokens_to_keep=keep)
    close, share = border(values, entropy)
    assert len(got) >= min(keep, len(finite))
    farthest = max(distance[i] for i in got)
    assert all(i in got for i in finite if distance[i] < farthest - close), "no gap among the nearest"
    assert sum(float(p[i]) for i in got) >= mass - share
    nearer = [i for i in got if distance[i] < farthest - close]
    assert sum(float(p[i]) for i in nearer) < mass + share or len(nearer) < keep


@settings(deadline=None)
@given(SCORES, st.floats(0.0005, 0.9), st.integers(1, 5))
def test_epsilon_and_eta_keep_the_probable_and_at_least_the_best(
    values: list[float], epsilon: float, keep: int
) -> None:
    p = torch.tensor(values, dtype=torch.float64).softmax(-1)
    entropy = -float(torch.where(p > 0, p * p.clamp(min=1e-300).log(), 0.0).sum())
    eta = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
    near = sum(border(values, entropy))
    kth = sorted(values, reverse=True)[min(keep, len(values)) - 1]
    for field, cutoff in (("epsilon_cutoff", epsilon), ("eta_cutoff", eta)):
        got = filtered(values, **{field: epsilon, "min_tokens_to_keep": keep})
        for i, v in enumerate(values):
            if v > -math.inf and abs(float(p[i]) / cutoff - 1) > near:
                assert (i in got) == (float(p[i]) >= cutoff or v >= kth)


def test_min_p_and_top_p_keep_exactly_as_many_as_they_must_the_lower_ids_among_equals() -> None:
    values = [0.0, 9.0, 1.0, 1.0, 1.0, -math.inf]
    assert filtered(values, min_p=0.9, min_tokens_to_keep=3) == [1, 2, 3]
    assert filtered(values, top_p=0.1, min_tokens_to_keep=3) == [1, 2, 3]
    assert filtered(values, top_p=0.0, min_tokens_to_keep=300) == [0, 1, 2, 3, 4]


def test_top_k_keeps_at_least_as_many_as_it_must() -> None:
    assert filtered([3.0, 2.0, 1.0, 0.0], top_k=1, min_tokens_to_keep=3) == [0, 1, 2]


@pytest.mark.parametrize("mass", [0.2, 0.9, 0.9999])
def test_typical_over_a_large_vocabulary_equals_the_full_sort(mass: float) -> None:
    """Flat and peaked rows: those that the quick look covers and those it does not."""
    scores = torch.randn(6, 5000, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.1], [1], [6]] * 2)
    got = run_all(scores, [LogitsParams(typical_p=mass)] * 6, [NOWHERE] * 6).isfinite()
    logp = scores.double().log_softmax(-1)
    distance = (logp + torch.distributions.Categorical(logits=scores.double()).entropy().unsqueeze(1)).abs()
    ascending, order = distance.sort(dim=-1)
    reached = (logp.exp().gather(1, order).cumsum(-1) < mass).sum(-1, keepdim=True).clamp(max=4999)
    differing = (got != (distance <= ascending.gather(1, reached))).sum(dim=-1)
    assert (differing <= 1).all(), "float32 and float64 may part by one token at the border, no more"
