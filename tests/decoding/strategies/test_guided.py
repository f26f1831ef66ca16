"""Guidance and KL-guided temperature: two contexts in lock step, over the table model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from decoding.contract.params import Guided, KlGuided, LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.sampling import draw, uniforms
from decoding.seam import Purpose
from decoding.strategies.mixed.guided import guided as mixed
from decoding.strategies.mixed.kl_guided import kl_divergence
from tests.decoding.drive import run
from tests.decoding.strategies.table_oracle import LARGEST, logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine

PROMPT = (3, 1, 4, 1, 5)
OTHER = (9, 2, 6)
GREEDY = LogitsParams(temperature=0)
LOGPROBS = LogprobsParams(3, 2)


def guided(scale: float, n: int = 1, ids: tuple[int, ...] = OTHER, **changes: Any) -> Request:
    return dataclasses.replace(Request(PROMPT, Guided(scale, ids, n), GREEDY, StoppingParams(8), seed=3), **changes)


def kl_guided(sigma: float, n: int = 1, ids: tuple[int, ...] = OTHER, **changes: Any) -> Request:
    request = Request(PROMPT, KlGuided(sigma, ids, n), LogitsParams(1.3), StoppingParams(8), seed=3)
    return dataclasses.replace(request, **changes)


def logits_after(history: tuple[int, ...]) -> torch.Tensor:
    model = TableModel()
    return model.head(states_of(model, history)[-1:])[0]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
def test_greedy_takes_the_best_of_the_combined_log_probs(scale: float) -> None:
    (answer,) = run(table_engine(), [guided(scale, logprobs=LOGPROBS)])
    output: tuple[int, ...] = ()
    for token, logprob in zip(answer.tokens(), answer.choices[0].logprobs, strict=True):
        c, u = (logits_after(ids + output).log_softmax(-1) for ids in (PROMPT, OTHER))
        assert token == int((scale * (c - u) + u).argmax())
        assert logprob == pytest.approx(float(c[token]), abs=logprob_error())
        output += (token,)
    assert len(output) == 8


def test_a_scale_of_zero_continues_the_negative_prompt() -> None:
    plain = Request(OTHER, Sampling(), GREEDY, StoppingParams(8))
    assert run(table_engine(), [guided(0.0)])[0].tokens() == run(table_engine(), [plain])[0].tokens()


def test_penalties_come_after_the_guidance_and_see_the_prompt_alone() -> None:
    biased = LogitsParams(0, logit_bias=((11, 1e6),), frequency_penalty=2e6)
    assert run(table_engine(), [guided(3.0, ids=(11, 11, 11), logits=biased)])[0].tokens()[0] == 11


def test_processed_log_probs_are_those_of_the_guided_distribution() -> None:
    request = guided(2.0, logits=LogitsParams(0.7), logprobs=LogprobsParams(4, mode="processed"))
    choice = run(table_engine(), [request])[0].choices[0]
    c, u = (logits_after(ids).log_softmax(-1) for ids in (PROMPT, OTHER))
    expected = ((2 * (c - u) + u) / 0.7).log_softmax(-1)
    # c and u are both rounded, and 2c - u multiplies that by 3; its own size is thrice that of the scores
    error = 3 * logprob_error() / 0.7 + logprob_error(3 * LARGEST / 0.7)
    assert choice.logprobs[0] == pytest.approx(float(expected[choice.token_ids[0]]), abs=error)
    best = expected.topk(4)
    assert [i for i, _ in choice.top[0]] == best.indices.tolist()
    assert [s for _, s in choice.top[0]] == pytest.approx(best.values.tolist(), abs=error)


def test_choices_are_seeded_and_the_first_is_the_single_one() -> None:
    for one, three in ((guided(1.5), guided(1.5, 3)), (kl_guided(5.0), kl_guided(5.0, 3))):
        hot = LogitsParams(2.0)
        single = run(table_engine(), [dataclasses.replace(one, logits=hot)])[0].tokens()
        several = run(table_engine(), [dataclasses.replace(three, logits=hot, trace=True)])[0]
        assert several.tokens(0) == single
        assert len({tuple(several.tokens(i)) for i in range(3)}) == 3
        for i in range(3):
            assert [e.values["token"] for e in several.trace if e.values["choice"] == i] == several.tokens(i)


def test_each_choice_ends_by_itself_and_takes_both_of_its_rows_along() -> None:
    eos = tuple(range(0, 40, 5))
    model = TableModel()
    request = guided(1.2, 4, logits=LogitsParams(2.0))
    answer = run(table_engine(models={"main": model}, eos=eos), [request])[0]
    lengths = [len(answer.tokens(i)) for i in range(4)]
    assert len(set(lengths)) > 1
    assert model.num_tokens == len(PROMPT) + len(OTHER) + 2 * sum(n - 1 for n in lengths)


def test_the_same_context_twice_is_plain_sampling() -> None:
    """D is 0 then and T stays T0: every token, log-prob and draw is that of the sampling request."""
    logits = LogitsParams(1.3, top_p=0.9, repetition_penalty=1.2)
    request = kl_guided(1.0, 2, PROMPT, logits=logits, logprobs=LOGPROBS)
    plain = dataclasses.replace(request, strategy=Sampling(2))
    assert run(table_engine(), [request])[0].said == run(table_engine(), [plain])[0].said
    shifted = LogitsParams(1.3, top_p=0.9, frequency_penalty=0.5)  # guided scores are log-probs, not logits
    same = guided(7.0, 1, PROMPT, logits=shifted, logprobs=LOGPROBS)
    plain = dataclasses.replace(same, strategy=Sampling())
    assert run(table_engine(), [same])[0].said == run(table_engine(), [plain])[0].said


def test_the_temperature_halves_for_every_sigma_of_divergence() -> None:
    sigma, t0 = 2.0, 1.3
    (answer,) = run(table_engine(), [kl_guided(sigma, trace=True)])
    output: tuple[int, ...] = ()
    for position, (token, event) in enumerate(zip(answer.tokens(), answer.trace, strict=True), len(PROMPT) - 1):
        z = logits_after(PROMPT + output)
        p, q = z.double().softmax(-1), logits_after(OTHER + output).double().softmax(-1)
        d = float((p * (p / q).log()).sum())
        temperature = t0 * 0.5 ** (d / sigma)
        assert event.values["divergence"] == pytest.approx(d)
        assert event.values["temperature"] == pytest.approx(temperature)
        number = torch.from_numpy(uniforms([3], [0], [position], [Purpose.SAMPLE]))
        assert token == int(draw((z / temperature).unsqueeze(0), number))
        output += (token,)


@pytest.mark.parametrize("vocab", [40, 1000])
def test_what_one_context_thinks_impossible_counts_as_a_ten_millionth(vocab: int) -> None:
    """The authors clip probabilities before their logarithms, so that one such token makes D 16 at most."""
    z, other = torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    z[3], other[3], z[4] = 20.0, -80.0, -math.inf
    p = [max(x, 1e-7) for x in z.double().softmax(-1).tolist()]
    q = [max(x, 1e-7) for x in other.double().softmax(-1).tolist()]
    d = sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
    assert kl_divergence(z, other) == pytest.approx(d, rel=1e-9)
    assert 14 < kl_divergence(z, other) < 16.2
    other[3] = -math.inf
    assert kl_divergence(z, other) == pytest.approx(d, rel=1e-9)


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.0, [-1.0, -2.0, -math.inf, -math.inf]),
        (0.5, [-1.5, -math.inf, -math.inf, -math.inf]),
        (1.0, [-2.0, -math.inf, -3.0, -math.inf]),
        (2.5, [-3.5, -math.inf, -3.0, -math.inf]),
    ],
)
def test_a_token_that_one_context_gives_no_chance_is_the_other_s_to_decide(gamma: float, expected: list[float]) -> None:
    c = torch.tensor([-2.0, -math.inf, -3.0, -math.inf])
    u = torch.tensor([-1.0, -2.0, -math.inf, -math.inf])
    assert mixed(c, u, gamma).tolist() == expected


class HalfBlind(TableModel):
    """After an odd hash only even ids have a chance, and the other way round."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = super().head(hidden)
        return scores.masked_fill((hidden[:, :1].long() + torch.arange(self.vocab)) % 2 == 1, -math.inf)


def test_guidance_goes_on_where_the_contexts_exclude_each_other_s_tokens() -> None:
    engine = table_engine(models={"main": HalfBlind()})
    (answer,) = run(engine, [guided(2.0, stopping=StoppingParams(30))])
    assert answer.failure is None
    model, output, num_apart = HalfBlind(), [], 0
    for token in answer.tokens():
        z, other = (model.head(states_of(model, (*ids, *output))[-1:])[0] for ids in (PROMPT, OTHER))
        c, u = z.log_softmax(-1).tolist(), other.log_softmax(-1).tolist()
        num_apart += u[token] == -math.inf
        scores = [x if y == -math.inf else y + 2.0 * (x - y) for x, y in zip(c, u, strict=True)]
        assert token == scores.index(max(scores))
        output.append(token)
    assert num_apart > 0


def test_a_small_sigma_is_greedy_where_the_contexts_differ() -> None:
    plain = Request(PROMPT, Sampling(), GREEDY, StoppingParams(8))
    (answer,) = run(table_engine(), [kl_guided(0.01, trace=True)])
    assert answer.tokens() == run(table_engine(), [plain])[0].tokens()
    assert all(e.values["temperature"] < 1e-5 for e in answer.trace)  # type: ignore[operator]


def test_a_context_longer_than_the_prompt_counts_for_what_fits() -> None:
    request = guided(1.5, ids=tuple(range(30)))
    assert request.max_length == 30 + 7
    assert run(table_engine(max_model_len=37), [request])[0].failure is None
    refused = run(table_engine(max_model_len=36), [request])[0].failure
    assert refused is not None
    assert refused.code == "never_fits"


def test_where_nothing_is_possible_the_request_fails() -> None:
    logits = LogitsParams(0, allowed_token_ids=(6,))
    for request in (guided(1.5, logits=logits), kl_guided(1.0, logits=logits)):
        stuck = dataclasses.replace(request, stopping=StoppingParams(4, min_tokens=2), logprobs=LOGPROBS, trace=True)
        answer = run(table_engine(eos=(6,)), [stuck])[0]
        assert answer.failure is not None
        assert answer.failure.code == "nothing_to_draw"
        assert answer.choices == {}


def test_nothing_to_generate_runs_no_forward() -> None:
    model = TableModel()
    run(table_engine(models={"main": model}), [guided(1.5, 2, stopping=StoppingParams(0))])
    assert model.num_forwards == 0
