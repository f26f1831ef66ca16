"""entropix through the engine: the right path for each quadrant, and metrics that are the model's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from decoding.contract.params import (
    Entropix,
    LogitsParams,
    LogprobsMode,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
)
from decoding.engine.cache import PageCache
from decoding.model.loading import wrap
from decoding.sampling import draw, uniforms
from decoding.seam import FinishReason, Purpose
from decoding.strategies.parts.quadrants import Metrics, Quadrant, Settings, filtered, settings
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.rounding_error import of_each
from tests.decoding.strategies.table_oracle import logprob_error
from tests.decoding.table_model import TableModel, states_of, table_engine
from tests.decoding.tiny import tiny

PROMPT = (3, 1, 4, 1, 5)
THINK = 7
CERTAIN = Entropix(low_entropy=99.0, low_varentropy=99.0)
THINKING = Entropix(THINK, low_entropy=0.0, high_entropy=0.0, low_varentropy=99.0)
FORKING = Entropix(low_entropy=0.0, high_entropy=99.0, high_varentropy=0.0)
RESAMPLING = Entropix(low_entropy=0.0, medium_entropy=0.0, high_entropy=0.0, low_varentropy=0.0, high_varentropy=0.0)
ADAPTIVE = Entropix(low_entropy=0.0, high_entropy=99.0, high_varentropy=99.0)
FORCED = {
    Quadrant.CERTAIN: CERTAIN, Quadrant.THINKING: THINKING, Quadrant.FORKING: FORKING,
    Quadrant.RESAMPLING: RESAMPLING, Quadrant.ADAPTIVE: ADAPTIVE,
}  # fmt: skip


def ask(params: Entropix = ADAPTIVE, **changes: Any) -> Request:
    request = Request(PROMPT, params, stopping=StoppingParams(8), seed=3, trace=True)
    return dataclasses.replace(request, **changes)


def answer_of(request: Request) -> Answer:
    (answer,) = run(table_engine(), [request])
    assert answer.failure is None, answer.failure
    return answer


def z_after(history: tuple[int, ...]) -> torch.Tensor:
    model = TableModel()
    return model.head(states_of(model, history)[-1:])[0]


@pytest.mark.parametrize("where", Quadrant)
def test_the_quadrant_that_fits_runs_and_is_traced(where: Quadrant) -> None:
    answer = answer_of(ask(FORCED[where]))
    assert [e.values["quadrant"] for e in answer.trace] == [where.value] * 8
    assert [e.values["token"] for e in answer.trace] == answer.tokens()
    for event in answer.trace:
        attention: Any = event.values["attention"]
        assert attention["entropy"] > 0
        assert isinstance(event.values["entropy"], float)


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_certain_is_greedy_and_says_the_same(mode: LogprobsMode) -> None:
    request = ask(CERTAIN, logits=LogitsParams(0, repetition_penalty=1.3), logprobs=LogprobsParams(3, 2, mode))
    greedy = dataclasses.replace(request, strategy=Sampling())
    assert answer_of(request).said == answer_of(greedy).said


def test_thinking_injects_the_think_token_unless_it_was_the_last() -> None:
    answer = answer_of(ask(THINKING, logprobs=LogprobsParams(0)))
    tokens = answer.tokens()
    assert len(tokens) == 8
    assert tokens[0] == THINK
    for before, token, event in zip(tokens, tokens[1:], answer.trace[1:], strict=False):
        assert (event.values["sampled"] is None) == (before != THINK)
        assert THINK in (token, before)
    assert answer.choices[0].logprobs[0] == float(z_after(PROMPT).log_softmax(-1)[THINK])
    after_think = dataclasses.replace(ask(THINKING), prompt_ids=(*PROMPT, THINK))
    assert answer_of(after_think).trace[0].values["sampled"] is not None


def test_without_a_think_token_or_with_one_that_is_excluded_it_is_sampled() -> None:
    silent = dataclasses.replace(THINKING, think_token_id=None)
    allowed = LogitsParams(allowed_token_ids=(1, 2, 3))
    for request in (ask(silent), ask(THINKING, logits=allowed)):
        assert all(event.values["sampled"] is not None for event in answer_of(request).trace)


@pytest.mark.parametrize("where", [Quadrant.THINKING, Quadrant.FORKING, Quadrant.RESAMPLING])
@pytest.mark.parametrize("compat", [False, True])
def test_a_sampled_token_is_drawn_from_the_quadrants_filter(where: Quadrant, compat: bool) -> None:
    params = dataclasses.replace(FORCED[where], think_token_id=None, uses_attention=False, compat=compat)
    answer = answer_of(ask(params, logprobs=LogprobsParams(0, mode="processed")))
    output: tuple[int, ...] = ()
    for i, (token, event) in enumerate(zip(answer.tokens(), answer.trace, strict=True)):
        h, v = event.values["entropy"], event.values["varentropy"]
        assert isinstance(h, float)
        assert isinstance(v, float)
        sampled = settings(where, Metrics(h, v), params)
        assert sampled is not None
        assert event.values["sampled"] == dataclasses.asdict(sampled)
        scores = filtered(z_after(PROMPT + output), sampled, is_compat=compat)
        number = torch.from_numpy(uniforms([3], [0], [len(PROMPT) + i - 1], [Purpose.SAMPLE]))
        assert token == int(draw(scores.unsqueeze(0), number))
        assert answer.choices[0].logprobs[i] == pytest.approx(
            float(scores.log_softmax(-1)[token]), abs=logprob_error(float(scores.max()))
        )
        output += (token,)


def test_adaptive_keeps_the_likeliest_of_its_draws() -> None:
    answer = answer_of(ask())
    output: tuple[int, ...] = ()
    varied = False
    for i, (token, event) in enumerate(zip(answer.tokens(), answer.trace, strict=True)):
        sampled: Any = event.values["sampled"]
        z = z_after(PROMPT + output)
        scores = filtered(z, Settings(**sampled), is_compat=False).unsqueeze(0)
        key = ([3], [0], [len(PROMPT) + i - 1], [Purpose.ADAPTIVE])
        draws = [int(draw(scores, torch.from_numpy(uniforms(*key, lane)))) for lane in range(5)]
        assert token == max(draws, key=lambda x: float(z[x]))
        varied |= len(set(draws)) > 1
        output += (token,)
    assert varied


def test_masks_hold_in_every_quadrant_and_metrics_do_not_see_them() -> None:
    logits = LogitsParams(allowed_token_ids=(1, 2, 3))
    for params in FORCED.values():
        free, bound = answer_of(ask(params)), answer_of(ask(params, logits=logits))
        assert set(bound.tokens()) <= {1, 2, 3}
        assert free.trace[0].values["entropy"] == bound.trace[0].values["entropy"]


def test_naked_it_reads_no_attention() -> None:
    class Watched(TableModel):
        probes = 0

        def forward(self, batch: Any, layers: tuple[int, ...] = ()) -> Any:
            Watched.probes += len(batch.probe_rows)
            return super().forward(batch, layers)

    for uses, expected in ((True, 8), (False, 0)):
        Watched.probes = 0
        request = ask(dataclasses.replace(ADAPTIVE, uses_attention=uses))
        (answer,) = run(table_engine(models={"main": Watched()}), [request])
        assert Watched.probes == expected
        assert (answer.trace[0].values["attention"] is None) == (not uses)


def test_the_think_token_may_end_the_text_as_any_other() -> None:
    request = ask(THINKING, stopping=StoppingParams(8, stop_token_ids=(THINK,)))
    choice = answer_of(request).choices[0]
    assert choice.token_ids == [THINK]
    assert choice.finish is not None
    assert (choice.finish.reason, choice.finish.stop_reason) == (FinishReason.STOP, THINK)


def test_where_nothing_is_possible_the_choice_ends_with_an_error() -> None:
    stuck = ask(logits=LogitsParams(allowed_token_ids=(6,)), stopping=StoppingParams(4, min_tokens=2))
    finish = run(table_engine(eos=(6,)), [stuck])[0].choices[0].finish
    assert finish is not None
    assert finish.reason is FinishReason.ERROR


def test_the_metrics_are_those_of_transformers_eager_attention() -> None:
    """Entropies in bits of the model's own distribution and of its last layer's attention weights."""
    prompt = tuple(range(5, 30))
    request = Request(prompt, Entropix(), stopping=StoppingParams(6), seed=1, trace=True)
    model = wrap(tiny("llama"))
    model.attention.allocate(40)
    engine = make_engine({"main": model}, {"main": PageCache(40, model.attention.page_size)}, eos_token_ids=())
    (answer,) = run(engine, [request])
    output: tuple[int, ...] = ()
    theirs = tiny("llama")
    for token, event in zip(answer.tokens(), answer.trace, strict=True):

        def metrics(lm: Any, ids: tuple[int, ...] = prompt + output) -> torch.Tensor:
            out = lm(torch.tensor([ids]), output_attentions=True)
            p, a = out.logits[0, -1].double().softmax(-1), out.attentions[-1][0, :, -1].double()
            h = -(p * p.log2()).sum()
            heads = -(a * a.clamp(min=1e-30).log2()).sum(-1)
            agreement = (a - a.mean(0)).abs().mean()
            return torch.stack((h, (p * (p.log2() + h) ** 2).sum(), heads.mean(), heads.var(correction=0), agreement))

        with torch.no_grad():
            expected = metrics(theirs)
        attention: Any = event.values["attention"]
        names = ("entropy", "varentropy")
        found = [*(event.values[n] for n in names), *(attention[n] for n in (*names, "agreement"))]
        assert ((torch.tensor(found) - expected).abs() <= 2 * of_each(theirs, metrics)).all()
        output += (token,)
