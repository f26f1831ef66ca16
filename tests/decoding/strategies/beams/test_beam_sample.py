"""Beam sample draws its candidates without replacement and in the right proportions.

The chi-square tests reject at 1e-6: one run in a million would fail by chance, but seeds are fixed, so none does.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from decoding.contract.params import BeamSample, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.sampling import draw_many_without_replacement, draw_without_replacement, uniforms
from decoding.seam import Purpose, Reading
from decoding.strategies import beam_sample
from decoding.strategies.beam_sample import BeamSampleStrategy
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.table_oracle import logprob_error, table_logprobs
from tests.decoding.table_model import TableModel, table_engine

PROMPT = (3, 1, 4, 1, 5)
REQUEST = Request(PROMPT, BeamSample(1, 3), stopping=StoppingParams(8), seed=5)
CRITICAL = {5: 35.89, 19: 63.67, 29: 80.44}
"""Chi-square at 1e-6, by degrees of freedom (scipy.stats.chi2.isf)."""


def answer(request: Request, vocab: int = 40) -> Answer:
    (found,) = run(table_engine(models={"main": TableModel(vocab=vocab)}, eos=(3,)), [request])
    assert found.failure is None, found.failure
    return found


def chi_square(observed: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    count = sum(observed.values())
    assert set(observed) <= set(expected)
    return sum((observed[k] - count * p) ** 2 / (count * p) for k, p in expected.items())


def ordered_pairs(p: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of drawing i and then j without replacement."""
    return {(i, j): float(p[i] * p[j] / (1 - p[i])) for i, j in itertools.permutations(range(len(p)), 2)}


def test_pairs_are_drawn_as_often_as_they_should() -> None:
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    noise = uniforms([9] * 20_000, [0] * 20_000, list(range(20_000)), [Purpose.BEAM_GUMBEL] * 20_000).reshape(-1, 2)
    observed = Counter(tuple(draw_without_replacement(p, pair)) for pair in noise.tolist())
    assert chi_square(observed, ordered_pairs(p)) < CRITICAL[29]


def test_pairs_of_a_large_draw_are_drawn_as_often_as_they_should() -> None:
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    keys = uniforms([9] * 10_000, [0] * 10_000, list(range(10_000)), [Purpose.BEAM_GUMBEL] * 10_000)
    observed = Counter(tuple(draw_many_without_replacement(p, 2, key)) for key in keys.tolist())
    assert chi_square(observed, ordered_pairs(p)) < CRITICAL[29]


def test_no_index_comes_twice_and_none_without_weight() -> None:
    rng = np.random.default_rng(3)
    for size in (1, 5, 256, 257, 1000):
        weights = rng.random(size).astype(np.float32) * (rng.random(size) < 0.3)
        noise = [0.0, 1 - 2**-53, *rng.random(size)]
        many = draw_many_without_replacement(weights, size, noise[-1])
        for drawn in (draw_without_replacement(weights, noise), many):
            assert sorted(drawn) == np.flatnonzero(weights).tolist()


@pytest.mark.parametrize("most_listed", [512, 1])
def test_two_beams_of_one_step_hold_each_pair_as_often_as_they_should(
    most_listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tokens, two beams, one step: the first two draws finish, so both choices together are the pair drawn. More
    candidates than are listed are drawn another way.
    """
    monkeypatch.setattr(beam_sample, "MOST_LISTED", most_listed)
    request = Request((3, 1, 2), BeamSample(2, 2), LogitsParams(temperature=1.7), StoppingParams(1, ignore_eos=True))
    engine = table_engine(models={"main": TableModel(vocab=4)})
    answers = run(engine, [dataclasses.replace(request, seed=seed) for seed in range(1000)])
    observed = Counter(tuple(sorted((a.tokens(0)[0], a.tokens(1)[0]))) for a in answers)
    scaled = np.exp(table_logprobs((3, 1, 2), TableModel(vocab=4)).astype(np.float64) / 1.7)
    pairs = ordered_pairs(scaled / scaled.sum())
    expected = {(i, j): pairs[i, j] + pairs[j, i] for i, j in itertools.combinations(range(4), 2)}
    assert chi_square(observed, expected) < CRITICAL[5]


def places(p: np.ndarray, drawn: Sequence[int], noise: np.ndarray) -> list[float]:
    """Where each draw fell in the distribution function of what those before it had left, the most probable first; at
    a random place of its step. Independent and uniform if, and only if, draws are without replacement from p.
    """
    order = np.argsort(-p, kind="stable")
    left, rank, found = p[order], np.argsort(order, kind="stable"), []
    for index, within in zip(drawn, noise, strict=True):
        at = rank[index]
        found.append(float((left[:at].sum() + within * left[at]) / left.sum()))
        left[at] = 0
    return found


def chi_square_of_uniform(numbers: list[float]) -> float:
    """19 degrees of freedom."""
    observed = np.histogram(numbers, bins=20, range=(0, 1))[0]
    expected = len(numbers) / 20
    return float(((observed - expected) ** 2 / expected).sum())


def test_hundreds_of_beams_draw_their_candidates_as_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.multinomial of the softmax of what all paths of two tokens have added up, and as many as it draws."""
    num_beams, vocab, temperature, seeds = 260, 40, 2.0, range(24)
    draws: dict[int, list[list[tuple[int, ...]]]] = {}
    original = BeamSampleStrategy._draw

    def noted(self: BeamSampleStrategy, readings: Sequence[Reading]) -> list[tuple[float, int, int]]:
        drawn = original(self, readings)
        paths = [(*(t.id for t in reversed(self._beams[beam].tokens_after(0))), token) for _, beam, token in drawn]
        draws.setdefault(self._request.seed, []).append(paths)
        return drawn

    monkeypatch.setattr(BeamSampleStrategy, "_draw", noted)
    request = Request(PROMPT, BeamSample(1, num_beams), LogitsParams(temperature), StoppingParams(2))
    engine = table_engine(models={"main": TableModel(vocab=vocab, num_pages=800)}, max_rows=num_beams)
    for found in run(engine, [dataclasses.replace(request, seed=seed) for seed in seeds]):
        assert found.failure is None, found.failure

    def scaled(history: tuple[int, ...]) -> torch.Tensor:
        return (torch.from_numpy(table_logprobs(history).astype(np.float64)) / temperature).log_softmax(-1)

    logp = torch.stack([scaled((*PROMPT, first)) for first in range(vocab)]) + scaled(PROMPT)[:, None]
    p, rng, generator = logp.flatten().softmax(-1), np.random.default_rng(4), torch.Generator().manual_seed(7)
    ours, theirs = [], []
    for seed in seeds:
        first, second = draws[seed]
        assert len(set(first)) == vocab  # there are no more
        assert len(set(second)) == 2 * num_beams
        ours += places(p.numpy(), [a * vocab + b for a, b in second], rng.random(2 * num_beams))
        drawn = p.multinomial(2 * num_beams, generator=generator).tolist()
        theirs += places(p.numpy(), drawn, rng.random(2 * num_beams))
    assert chi_square_of_uniform(ours) < CRITICAL[19]
    assert chi_square_of_uniform(theirs) < CRITICAL[19]


def test_of_the_drawn_the_best_goes_on_in_whatever_order_they_came() -> None:
    """But of those that the length ends, the first drawn."""
    for seed in range(6):
        history = [*PROMPT]
        for step in range(4):
            weights = np.exp(table_logprobs(history))
            numbers = uniforms([seed] * 2, [0] * 2, [len(history) - 1] * 2, [Purpose.BEAM_GUMBEL] * 2, np.arange(2))
            drawn = draw_without_replacement(weights, numbers.tolist())
            history.append(drawn[0] if step == 3 else max(drawn, key=lambda token: weights[token]))
        request = dataclasses.replace(REQUEST, strategy=BeamSample(1, 1), stopping=StoppingParams(4), seed=seed)
        (found,) = run(table_engine(), [request])
        assert found.tokens() == history[len(PROMPT) :]


def test_seeds_decide() -> None:
    assert answer(REQUEST).said == answer(REQUEST).said
    outputs = {tuple(answer(dataclasses.replace(REQUEST, seed=seed)).tokens()) for seed in range(8)}
    assert len(outputs) > 6


def test_raw_logprobs_are_untouched_by_the_warpers() -> None:
    warped = dataclasses.replace(REQUEST, logits=LogitsParams(2.0, top_k=20), logprobs=LogprobsParams(2))
    choice = answer(warped).choices[0]
    for t, token in enumerate(choice.token_ids):
        raw = table_logprobs((*PROMPT, *choice.token_ids[:t]))
        assert choice.logprobs[t] == pytest.approx(float(raw[token]), abs=logprob_error())
        assert [i for i, _ in choice.top[t]] == np.lexsort((np.arange(40), -raw))[:2].tolist()
    processed = answer(dataclasses.replace(warped, logprobs=LogprobsParams(0, mode="processed"))).choices[0]
    assert processed.token_ids == choice.token_ids
    assert processed.logprobs == [value / 2 for value in choice.logprobs]  # which rounds nothing


def test_fewer_candidates_than_beams_are_enough() -> None:
    found = answer(dataclasses.replace(REQUEST, logits=LogitsParams(top_k=1), strategy=BeamSample(1, 4)))
    greedy = dataclasses.replace(REQUEST, logits=LogitsParams(0.0), strategy=BeamSample(1, 1))
    assert len(found.tokens()) == 8
    assert found.tokens() == answer(dataclasses.replace(greedy, logits=LogitsParams(top_k=1))).tokens()
