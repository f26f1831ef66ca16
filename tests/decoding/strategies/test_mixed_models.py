"""Several models, or contexts, decide together: each strategy against a slow loop over the bare models."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from decoding.contract.params import (
    Beam,
    ContextAware,
    ContrastiveDecoding,
    Dexperts,
    Ensemble,
    Guided,
    InvalidParam,
    LogitsParams,
    LogprobsParams,
    Pmi,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.sampling import draw, uniforms
from decoding.seam import Purpose
from tests.decoding.crowd import run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.strategies.table_oracle import LARGEST, logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine
from tests.decoding.tiny import tiny

PROMPT = (3, 1, 4, 1, 5)
OTHER = (9, 2, 6)
SEEDS = {"main": 1, "small": 22, "tuned": 333}
GREEDY = LogitsParams(temperature=0)
Bare = Callable[[str, Sequence[int]], torch.Tensor]
"""A model's logits float32 [vocab] after these ids."""


def table_logits(name: str, ids: Sequence[int]) -> torch.Tensor:
    model = TableModel(seed=SEEDS[name])
    return model.head(states_of(model, ids)[-1:])[0]


def three_models(num_pages: int = 200) -> Engine:
    models = {name: TableModel(seed=seed, num_pages=num_pages) for name, seed in SEEDS.items()}
    return table_engine(models=models, max_rows=32, tick_tokens=32)


def log_p(logits: torch.Tensor) -> list[float]:
    return [float(x) for x in logits.double().log_softmax(-1)]


def amateur_contrast(alpha: float, beta: float | None, tau: float) -> Callable[[Bare, list[int]], list[float]]:
    def scores(bare: Bare, output: list[int]) -> list[float]:
        history = (*PROMPT, *output)
        expert, amateur = log_p(bare("main", history)), log_p(bare("small", history) / tau)
        floor = math.log(alpha) + max(expert)
        one, other = (1.0, 1.0) if beta is None else (1 + beta, beta)
        return [one * e - other * a if e >= floor else -math.inf for e, a in zip(expert, amateur, strict=True)]

    return scores


def steered(bare: Bare, output: list[int]) -> list[float]:
    history = (*PROMPT, *output)
    z, plus, minus = (bare(name, history).tolist() for name in ("main", "tuned", "small"))
    return [a + 0.7 * (b - c) for a, b, c in zip(z, plus, minus, strict=True)]


def product(weights: tuple[float, float, float]) -> Callable[[Bare, list[int]], list[float]]:
    def scores(bare: Bare, output: list[int]) -> list[float]:
        logps = [log_p(bare(name, (*PROMPT, *output))) for name in ("main", "small", "tuned")]
        return [sum(w * x for w, x in zip(weights, each, strict=True)) for each in zip(*logps, strict=True)]

    return scores


def context_aware(bare: Bare, output: list[int]) -> list[float]:
    with_source, without = bare("main", (*PROMPT, *output)).tolist(), bare("main", (*OTHER, *output)).tolist()
    return [1.5 * a - 0.5 * b for a, b in zip(with_source, without, strict=True)]


def pmi(tau: float) -> Callable[[Bare, list[int]], list[float]]:
    def scores(bare: Bare, output: list[int]) -> list[float]:
        c, u = log_p(bare("main", (*PROMPT, *output))), log_p(bare("main", (*OTHER, *output)))
        entropy = -sum(math.exp(x) * x for x in c)
        return [a - 0.6 * b for a, b in zip(c, u, strict=True)] if entropy >= tau else c

    return scores


CASES: dict[str, tuple[StrategyParams, Callable[[Bare, list[int]], list[float]]]] = {
    "contrastive decoding": (ContrastiveDecoding("small", 0.05), amateur_contrast(0.05, None, 1.0)),
    "by beta": (ContrastiveDecoding("small", 0.05, 0.5), amateur_contrast(0.05, 0.5, 1.0)),
    "a cold amateur": (ContrastiveDecoding("small", 0.2, None, 0.5), amateur_contrast(0.2, None, 0.5)),
    "dexperts": (Dexperts("tuned", "small", 0.7), steered),
    "ensemble": (Ensemble(("small", "tuned")), product((1 / 3, 1 / 3, 1 / 3))),
    "weights": (Ensemble(("small", "tuned"), (0.5, 1.0, 0.2)), product((0.5, 1.0, 0.2))),
    "context-aware": (ContextAware(OTHER, 0.5), context_aware),
    "pmi": (Pmi(OTHER, 0.6), pmi(0.0)),
    "pmi where unsure": (Pmi(OTHER, 0.6, 1.2), pmi(1.2)),
}


def request(strategy: StrategyParams, **changes: Any) -> Request:
    return dataclasses.replace(Request(PROMPT, strategy, GREEDY, StoppingParams(10), seed=3), **changes)


@pytest.mark.parametrize("name", CASES)
def test_greedy_is_a_loop_over_the_bare_models(name: str) -> None:
    strategy, scores = CASES[name]
    output: list[int] = []
    while len(output) < 10:
        each = scores(table_logits, output)
        output.append(each.index(max(each)))
    (answer,) = run(three_models(), [request(strategy)])
    assert answer.tokens() == output
    plain = run(three_models(), [request(Sampling())])[0].tokens()
    assert answer.tokens() != plain


@pytest.mark.parametrize("name", CASES)
def test_draws_are_of_the_combined_distribution(name: str) -> None:
    strategy, scores = CASES[name]
    (answer,) = run(three_models(), [request(strategy, logits=LogitsParams(1.4))])
    output: list[int] = []
    for position, token in enumerate(answer.tokens(), len(PROMPT) - 1):
        number = torch.from_numpy(uniforms([3], [0], [position], [Purpose.SAMPLE]))
        combined = torch.tensor([scores(table_logits, output)]) / 1.4
        assert token == int(draw(combined.float(), number))
        output.append(token)
    assert len(output) == 10


@pytest.mark.parametrize("name", CASES)
def test_raw_log_probs_are_the_main_models_and_processed_ones_the_combined(name: str) -> None:
    strategy, scores = CASES[name]
    raw, processed = (
        run(three_models(), [request(strategy, logprobs=LogprobsParams(3, 2, mode=mode))])[0]
        for mode in ("raw", "processed")
    )
    output: list[int] = []
    error = 4 * logprob_error(4 * LARGEST)
    for i, token in enumerate(raw.tokens()):
        own = log_p(table_logits("main", (*PROMPT, *output)))
        combined = log_p(torch.tensor(scores(table_logits, output)))
        assert raw.choices[0].logprobs[i] == pytest.approx(own[token], abs=error)
        assert processed.choices[0].logprobs[i] == pytest.approx(combined[token], abs=error)
        output.append(token)
    assert raw.prompt is not None
    assert raw.prompt.logprobs[2] == pytest.approx(log_p(table_logits("main", PROMPT[:2]))[PROMPT[2]], abs=error)


def test_context_aware_decoding_is_guidance_by_its_own_name() -> None:
    changes: dict[str, Any] = {"logits": LogitsParams(1.3, top_p=0.9), "logprobs": LogprobsParams(3)}
    own, guided = (request(each, **changes) for each in (ContextAware(OTHER, 0.5, 2), Guided(1.5, OTHER, 2)))
    assert run(three_models(), [own])[0].said == run(three_models(), [guided])[0].said


@pytest.mark.parametrize("strategy", [Dexperts("tuned", "small", 0.0), Pmi(OTHER, 0.0), Pmi(OTHER, 1.0, 1e6)])
def test_with_nothing_to_add_it_is_plain_sampling(strategy: StrategyParams) -> None:
    logits = LogitsParams(1.3, top_p=0.9, frequency_penalty=0.5)
    asked = request(strategy, logits=logits, logprobs=LogprobsParams(3))
    plain = dataclasses.replace(asked, strategy=Sampling())
    assert run(three_models(), [asked])[0].tokens() == run(three_models(), [plain])[0].tokens()


def test_masks_that_leave_nothing_plausible_move_the_bar() -> None:
    """Only ids that the model finds unlikely are allowed: the best of them are the plausible ones."""
    z = table_logits("main", PROMPT)
    allowed = tuple(z.argsort()[:5].tolist())
    asked = request(
        ContrastiveDecoding("small", 0.9), stopping=StoppingParams(1), logits=LogitsParams(0, allowed_token_ids=allowed)
    )
    (answer,) = run(three_models(), [asked])
    assert answer.failure is None
    likeliest = max(allowed, key=lambda i: float(z[i]))
    assert answer.tokens() == [likeliest]


def test_what_one_model_finds_impossible_makes_no_nan() -> None:
    """A model can have ids at -inf, as padding of its output matrix."""
    masked = TableModel(seed=22, num_pages=64)
    head = masked.head
    masked.head = lambda hidden: head(hidden).index_fill(1, torch.arange(20), -math.inf)  # type: ignore[method-assign]
    models = {"main": TableModel(), "small": masked, "tuned": TableModel(seed=333)}
    strategies = (
        ContrastiveDecoding("small"), ContrastiveDecoding("small", beta=0.5), Dexperts("tuned", "small"),
        Dexperts("small", "tuned"), Ensemble(("small", "tuned")),
    )  # fmt: skip
    asked = [request(each, logprobs=LogprobsParams(3, mode="processed")) for each in strategies]
    answers = run(table_engine(models=models), asked)
    assert all(answer.failure is None for answer in answers)
    assert all(math.isfinite(x) for answer in answers for x in answer.choices[0].logprobs)
    assert all(min(answer.tokens()) >= 20 for answer in answers[3:])


def test_together_with_beams_and_samples_each_answers_as_alone() -> None:
    rng = random.Random(7)
    strategies = [dataclasses.replace(case[0], n=rng.randrange(1, 3)) for case in CASES.values()]  # type: ignore[call-arg]
    mixed = [*strategies, Beam(2, 3), Sampling(2), Beam(1, 4), Sampling()]
    requests = [
        Request(
            tuple(rng.randrange(40) for _ in range(rng.randrange(3, 30))),
            each,
            LogitsParams(0 if isinstance(each, Beam) else rng.choice([0, 0.9])),
            StoppingParams(rng.randrange(6, 16)),
            LogprobsParams(2, rng.choice([None, 1]), mode=rng.choice(["raw", "processed"])),
            seed=seed,
            pause_ids=(7, 8) if seed % 5 == 0 else (),
        )
        for seed, each in enumerate(mixed * 4)
    ]
    rng.shuffle(requests)
    alone: list[Answer] = [run(three_models(), [each])[0] for each in requests]
    crowded = three_models(40)
    answers = run_crowd(crowded, requests, random.Random(8))
    assert crowded.scheduler.counters.preemptions > 10
    for index, answer in answers.items():
        assert answer.said == alone[index].said, f"request {index} differs: {requests[index]}"


def test_real_models_of_other_shapes_equal_their_own_forwards() -> None:
    """transformers' own forwards over the whole text, a token at a time."""
    shapes: dict[str, dict[str, Any]] = {
        "main": {}, "small": {"num_hidden_layers": 1, "initializer_range": 0.2}, "tuned": {"num_hidden_layers": 2},
    }  # fmt: skip
    bare_models = {name: tiny("llama", **shape) for name, shape in shapes.items()}

    def bare(name: str, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            return bare_models[name](torch.tensor([list(ids)])).logits[0, -1].float()

    expected: dict[str, list[int]] = {}
    for name, (_, scores) in CASES.items():
        output: list[int] = []
        while len(output) < 6:
            each = scores(bare, output)
            output.append(each.index(max(each)))
        expected[name] = output
    models = {name: wrap(tiny("llama", **shape)) for name, shape in shapes.items()}
    for model in models.values():
        model.attention.allocate(60)
    caches = {name: PageCache(60, model.attention.page_size) for name, model in models.items()}
    engine = make_engine(models, caches, eos_token_ids=())
    with torch.inference_mode():
        answers = run(engine, [request(strategy, stopping=StoppingParams(6)) for strategy, _ in CASES.values()])
    assert {name: answer.tokens() for name, answer in zip(CASES, answers, strict=True)} == expected


def test_a_model_that_is_not_there_fails_the_request_alone() -> None:
    lost, fine = run(table_engine(), [request(ContrastiveDecoding("small")), request(Sampling())])
    assert lost.failure is not None
    assert (lost.failure.code, lost.failure.message) == (
        "no_model",
        "the request needs a small model and the server has none",
    )
    assert fine.failure is None


def test_rows_count_in_the_model_that_holds_them() -> None:
    assert Dexperts("tuned", "main", n=2).max_rows_in == {"main": 4, "tuned": 2}
    assert Ensemble(("small", "tuned")).max_rows_in == {"main": 1, "small": 1, "tuned": 1}
    assert ContrastiveDecoding("small", n=3).max_rows == 6


@pytest.mark.parametrize(
    ("models", "weights"), [((), ()), (("main",), ()), (("a", "a"), ()), (("a",), (1.0,)), (("a",), (1.0, 0.0))]
)
def test_an_ensemble_that_makes_no_sense_is_refused(models: tuple[str, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(InvalidParam, match=r"^ensemble\."):
        Ensemble(models, weights)
