"""A row's result has the same bits alone and among others, whatever the vocabulary and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from decoding.contract.params import Adapt, Edt, LogitsParams
from decoding.logits.entropy import entropies
from decoding.logits.history import History
from decoding.logits.pipeline import Pipelines
from decoding.sampling import draw
from tests.decoding.logits.rows import history, run_all

ROWS = 7
PIPELINES = Pipelines((2,), [b"\n", b"  ", b"x"] * 40)
STEPS: dict[str, tuple[dict[str, Any], ...]] = {
    "repetition": ({"repetition_penalty": 1.3}, {"repetition_penalty": 0.7, "repetition_penalty_scope": "output"}),
    "windowed": ({"repetition_penalty": 1.1, "repetition_penalty_window": 4}, {"repetition_penalty": 1.7}),
    "counts": ({"frequency_penalty": 0.3}, {"presence_penalty": 0.7}),
    "ngrams": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}),
    "bad words": ({"bad_words": ((5,), (1, 2))}, {"bad_words": ((3, 4),)}),
    "bias": ({"logit_bias": ((3, 0.1),)}, {"logit_bias": ((4, 7.7), (5, -0.3))}),
    "allowed": ({"allowed_token_ids": tuple(range(50))}, {"allowed_token_ids": (3, 7)}),
    "eos penalty": ({"eos_penalty": 0.1, "eos_penalty_until": 50}, {"eos_penalty": 0.7, "eos_penalty_until": 90}),
    "decay": ({"exponential_decay_length_penalty": (3, 1.1)}, {"exponential_decay_length_penalty": (9, 1.07)}),
    "lz": ({"lz_penalty": 0.15}, {"lz_penalty": 0.3, "lz_buffer": 4, "lz_window": 9}),
    "top_n_sigma": ({"top_n_sigma": 1.0}, {"top_n_sigma": 0.7}, {"top_n_sigma": 2.0}),
    "temperature": ({"temperature": 0.7}, {"temperature": 1.3}),
    "edt": ({"edt": Edt(0.5)}, {"edt": Edt(2.0, 0.7), "temperature": 0.9}, {"edt": Edt(90.0)}),
    "adapt": ({"adapt": Adapt(0.9, 0.3)}, {"adapt": Adapt(0.7, 0.0)}),
    "top_k": ({"top_k": 5}, {"top_k": 60}),
    "top_p": ({"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 0.999, "min_tokens_to_keep": 3}),
    "min_p": ({"min_p": 0.1}, {"min_p": 0.9, "min_tokens_to_keep": 4}),
    "typical": ({"typical_p": 0.2}, {"typical_p": 0.95}, {"typical_p": 0.01, "min_tokens_to_keep": 3}),
    "epsilon": ({"epsilon_cutoff": 0.001}, {"epsilon_cutoff": 0.1, "min_tokens_to_keep": 3}),
    "eta": ({"eta_cutoff": 0.01}, {"eta_cutoff": 0.3, "min_tokens_to_keep": 3}),
}
STEPS["everything"] = tuple(
    {key: value for fields in STEPS.values() for key, value in fields[i % len(fields)].items() if key != "adapt"}
    for i in range(3)
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inputs(vocab: int) -> tuple[torch.Tensor, list[History]]:
    generator = torch.Generator().manual_seed(vocab)
    scores = torch.randn(ROWS, vocab, generator=generator) * torch.tensor([0.01, 1, 4]).repeat(3)[:ROWS].unsqueeze(1)
    scores[3, 40:] = -torch.inf
    scores[4] = (scores[4] * 2).round() / 2
    ids = torch.randint(0, 12, (ROWS, 60), generator=generator).tolist()
    return scores, [history(row[:5], row[5 : 20 + 4 * i]) for i, row in enumerate(ids)]


@pytest.mark.parametrize("vocab", [97, 49152])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_gives_a_row_the_same_bits_alone_and_among_others(step: str, vocab: int) -> None:
    scores, seen = inputs(vocab)
    params = [LogitsParams(**STEPS[step][i % len(STEPS[step])]) for i in range(ROWS)]
    together = run_all(scores, params, seen, pipelines=PIPELINES)
    for at in ([1, 2, 3], [0], [5]):
        got = run_all(scores[at], [params[i] for i in at], [seen[i] for i in at], pipelines=PIPELINES)
        assert torch.equal(got, together[at])
    assert not together.isnan().any()
    assert not torch.equal(together, scores)


@pytest.mark.parametrize("vocab", [97, 49152])
def test_entropies_and_draws_have_the_same_bits_alone_and_among_others(vocab: int) -> None:
    scores, _ = inputs(vocab)
    uniform = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    entropy, varentropy = entropies(scores)
    drawn = draw(scores, uniform)
    for i in range(ROWS):
        alone = entropies(scores[i : i + 1])
        assert torch.equal(alone[0][0], entropy[i])
        assert torch.equal(alone[1][0], varentropy[i])
        assert draw(scores[i : i + 1], uniform[i : i + 1])[0] == drawn[i]


@pytest.mark.parametrize("step", STEPS)
def test_a_row_without_any_id_left_stays_excluded_and_is_never_nan(step: str) -> None:
    scores, seen = inputs(97)
    scores[1] = -torch.inf
    params = [LogitsParams(**STEPS[step][i % len(STEPS[step])]) for i in range(ROWS)]
    got = run_all(scores, params, seen, pipelines=PIPELINES)
    assert (got[1] == -torch.inf).all()
    assert not got.isnan().any()
    assert 0 <= draw(got, torch.full((ROWS,), 0.5, dtype=torch.float64))[1] < 97
