"""Encoder memory in the engine: made once, shared by rows, kept apart from neighbours, given back."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch

from decoding.attention.interface import Batch
from decoding.contract.params import (
    Beam,
    BeamSample,
    BestFirst,
    BestOf,
    Contrastive,
    CotDecoding,
    Guided,
    KlGuided,
    LogitsParams,
    LogprobsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.engine import turns
from decoding.strategies import build
from tests.decoding.conftest import one_thread
from tests.decoding.crowd import run_crowd
from tests.decoding.drive import run
from tests.decoding.rounding_error import of_model, of_product
from tests.decoding.seq2seq.world import SPECS, engine, model, request
from tests.goldens.seq2seq import build as build_hf

__all__ = ["one_thread"]

SOURCE = (7, 50, 12, 33, 8, 41, 22, 60, 5)
STRATEGIES: tuple[StrategyParams, ...] = (
    Sampling(3),
    BestOf(1, 3, "mean"),
    Beam(2, 3),
    BeamSample(1, 3),
    BestFirst(1, 3),
    Contrastive(0.6, 3),
    CotDecoding(3),
    PromptLookup(3, 2),
    Guided(1.5, (5, 9, 2)),
    KlGuided(2.0, (2,), 2),
)


def random_requests(name: str, count: int) -> list[Request]:
    """Every strategy in turn; some share a source, some go on from a decoder prompt."""
    rng = random.Random(11)
    asked = []
    for i in range(count):
        strategy = STRATEGIES[i % len(STRATEGIES)]
        is_shared = rng.random() < 0.4
        source = SOURCE if is_shared else rng.choices(range(3, 60), k=rng.randrange(1, 60))
        hot = isinstance(strategy, Sampling | BestOf | BeamSample | PromptLookup | KlGuided)
        prompt = (SPECS[name].start, *(range(3, 23) if is_shared else rng.choices(range(3, 60), k=rng.choice([0, 20]))))
        asked.append(
            request(
                SPECS[name],
                source,
                strategy=strategy,
                logits=LogitsParams(temperature=1.0 if hot else 0.0, repetition_penalty=rng.choice([1.0, 1.3])),
                logprobs=LogprobsParams(output=rng.choice([None, 2])),
                prompt_ids=prompt,
                seed=i,
            )
        )
    return asked


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_strategy_says_bit_for_bit_the_same_alone_and_in_a_crowd(name: str) -> None:
    asked = random_requests(name, 20)
    crowded = engine(name, num_pages=17, tick_tokens=40)
    answers = run_crowd(crowded, asked, random.Random(5))
    assert crowded.scheduler.counters.preemptions > 0
    assert crowded.scheduler.counters.prefix_hits > 0
    for index, answer in answers.items():
        assert answer.said == run(engine(name), [asked[index]])[0].said, asked[index].strategy


def test_a_source_is_encoded_once_however_many_rows_and_ticks_there_are() -> None:
    crowded = engine("bart")
    asked = [request(SPECS["bart"], SOURCE, strategy=strategy) for strategy in STRATEGIES]
    run(crowded, asked)
    num_second = sum(isinstance(strategy, Guided | KlGuided) for strategy in STRATEGIES)
    assert crowded.encoded_sources == len(asked) + num_second


OTHER = (7, 50, 4, 2)


@torch.no_grad()
def scores_of(name: str, source: tuple[int, ...], output: list[int], hf: Any = None) -> torch.Tensor:
    """transformers' own, over the whole text: float64 [vocab]."""
    ids, hf = torch.tensor([[SPECS[name].start, *output]]), hf or build_hf(SPECS[name])
    logits: torch.Tensor = hf(input_ids=torch.tensor([source]), decoder_input_ids=ids).logits
    return logits[0, -1].double()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_second_context_of_guidance_is_a_second_source(name: str) -> None:
    """The two are told apart by a large scale, and no token comes twice."""
    stopping, logits = StoppingParams(8, ignore_eos=True), LogitsParams(0, no_repeat_ngram_size=1)
    asked = [request(SPECS[name], SOURCE, strategy=s, stopping=stopping, logits=logits) for s in
             (Guided(40.0, OTHER), Sampling())]  # fmt: skip
    guided, plain = (run(engine(name), [each])[0].tokens() for each in asked)
    output: list[int] = []
    for token in guided:
        c, u = (scores_of(name, source, output).log_softmax(-1) for source in (SOURCE, OTHER))
        scores = u + 40.0 * (c - u)
        scores[[SPECS[name].start, *output]] = -torch.inf
        assert token == int(scores.argmax())
        output.append(token)
    assert plain != output


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_temperature_follows_the_divergence_from_what_the_other_source_gives(name: str) -> None:
    options = {"strategy": KlGuided(0.7, OTHER), "logits": LogitsParams(1.3), "trace": True, "seed": 4}
    (answer,) = run(engine(name), [request(SPECS[name], SOURCE, **options)])
    output: list[int] = []
    hf = build_hf(SPECS[name])
    for token, event in zip(answer.tokens(), answer.trace, strict=True):

        def divergence(lm: Any, text: tuple[int, ...] = tuple(output)) -> torch.Tensor:
            p, q = (scores_of(name, source, [*text], lm).softmax(-1).clamp(min=1e-7) for source in (SOURCE, OTHER))
            return (p * (p / q).log()).sum()

        expected, error = float(divergence(hf)), 2 * of_model(hf, divergence)
        assert event.values["divergence"] == pytest.approx(expected, abs=error)
        temperature = 1.3 * 0.5 ** (expected / 0.7)
        assert event.values["temperature"] == pytest.approx(temperature, rel=math.log(2) / 0.7 * error)
        output.append(token)


def test_rows_of_the_second_source_find_no_prefix_of_the_first() -> None:
    prompt = (SPECS["bart"].start, *range(3, 43))
    shared = engine("bart")
    asked = request(SPECS["bart"], SOURCE, strategy=Guided(2.0, OTHER), prompt_ids=prompt)
    (first,) = run(shared, [asked])
    (again,) = run(shared, [asked])
    assert shared.scheduler.counters.prefix_hits == 32
    assert first.said == again.said == run(engine("bart"), [asked])[0].said
    (swapped,) = run(shared, [request(SPECS["bart"], OTHER, strategy=Guided(2.0, SOURCE), prompt_ids=prompt)])
    alone = request(SPECS["bart"], OTHER, strategy=Guided(2.0, SOURCE), prompt_ids=prompt)
    assert swapped.said == run(engine("bart"), [alone])[0].said


def test_a_second_source_has_the_bounds_of_a_source_and_is_no_part_of_a_row() -> None:
    longest = request(SPECS["bart"], SOURCE, strategy=Guided(2.0, (5,) * 64))
    assert longest.max_length == 1 + 11
    assert run(engine("bart"), [longest])[0].failure is None
    too_long = run(engine("bart"), [request(SPECS["bart"], SOURCE, strategy=Guided(2.0, (5,) * 65))])[0]
    assert too_long.failure is not None
    assert too_long.failure.code == "never_fits"


def test_sources_are_encoded_together_within_the_budget_of_a_tick() -> None:
    crowded = engine("bart", tick_tokens=20)
    sources = [SOURCE, SOURCE, SOURCE, tuple(range(3, 33))]  # 9, 9, 9 and 30 tokens
    for i, source in enumerate(sources):
        crowded.add(i, request(SPECS["bart"], source), build)
    encoded = []
    for _ in range(4):
        crowded.tick()
        encoded.append(crowded.encoded_sources)
    assert encoded == [2, 3, 4, 4]
    for i in range(len(sources)):
        crowded.cancel(i)


def memory_pages(num_beams: int) -> tuple[int, int]:
    """Pages of the encoder memory, and most pages used in all."""
    crowded = engine("bart")
    strategy = Beam(1, num_beams) if num_beams > 1 else Sampling()
    crowded.add(0, request(SPECS["bart"], range(3, 53), strategy=strategy), build)
    pages, most = set(), 0
    while crowded.has_work:
        crowded.tick()
        most = max(most, crowded.used_pages)
        pages |= {len(m.table.pages) for live in crowded.scheduler.running for m in live.memories.values()}
    (count,) = pages
    return count, most


def test_eight_beams_share_the_encoder_memory_that_one_row_has() -> None:
    one, most_of_one = memory_pages(1)
    eight, most_of_eight = memory_pages(8)
    assert one == eight == 4  # 50 positions
    assert most_of_one == one + 1  # the row itself fits a page
    assert most_of_eight <= one + 8  # beams of one parent share their page until they write


def test_cancelling_gives_the_encoder_memory_back_at_once() -> None:
    crowded = engine("bart")
    crowded.add(0, request(SPECS["bart"], SOURCE), build)
    crowded.tick()
    assert crowded.used_pages == 1
    crowded.check_integrity()
    crowded.cancel(0)
    assert crowded.used_pages == 0
    crowded.check_integrity()


def test_a_preempted_request_is_encoded_again() -> None:
    asked = [request(SPECS["bart"], (3 + i, *SOURCE, *SOURCE), 14, strategy=Beam(4, 4)) for i in range(4)]
    crowded = engine("bart", num_pages=14)
    answers = run(crowded, asked)
    preemptions = crowded.scheduler.counters.preemptions
    assert preemptions > 0
    assert len(asked) < crowded.encoded_sources <= len(asked) + preemptions
    for one, answer in zip(asked, answers, strict=True):
        assert answer.said == run(engine("bart"), [one])[0].said


def test_rows_of_one_source_find_each_other_s_prefix_and_rows_of_another_do_not() -> None:
    prompt = (SPECS["bart"].start, *range(3, 43))
    shared = engine("bart")
    run(shared, [request(SPECS["bart"], SOURCE, prompt_ids=prompt)])
    run(shared, [request(SPECS["bart"], SOURCE[1:], prompt_ids=prompt)])
    assert shared.scheduler.counters.prefix_hits == 0
    run(shared, [request(SPECS["bart"], SOURCE, prompt_ids=prompt)])
    assert shared.scheduler.counters.prefix_hits == 32


@pytest.mark.parametrize(("source", "code"), [((), "no_model"), (tuple([5] * 65), "never_fits")])
def test_a_request_without_a_source_or_with_too_long_a_one_is_refused(source: tuple[int, ...], code: str) -> None:
    answer = run(engine("bart"), [request(SPECS["bart"], source)])[0]
    assert answer.failure is not None
    assert answer.failure.code == code


@torch.no_grad()
def covered(hf: Any, name: str, output: list[int]) -> torch.Tensor:
    """From transformers' own cross-attention: the sum over the source of ln(min(sum_j a_ij, 1))."""
    ids = torch.tensor([[SPECS[name].start, *output[:-1]]])
    out = hf(input_ids=torch.tensor([SOURCE]), decoder_input_ids=ids, output_attentions=True)
    paid = out.cross_attentions[-1][0].double().mean(dim=0).sum(dim=0)  # [source]
    return paid.clamp(1e-9, 1.0).log().sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_coverage_penalty_is_that_of_transformers_cross_attention(name: str) -> None:
    beta, stopping = 0.4, StoppingParams(6, ignore_eos=True)
    strategy = Beam(3, 3, length_penalty=0.0, coverage_penalty=beta)
    asked = request(SPECS[name], SOURCE, strategy=strategy, stopping=stopping, logprobs=LogprobsParams(0))
    answer, hf = run(engine(name), [asked])[0], build_hf(SPECS[name])
    for choice in answer.choices.values():
        assert choice.finish is not None
        read = functools.partial(covered, name=name, output=choice.token_ids)
        expected = sum(choice.logprobs) + beta * float(read(hf))
        assert choice.finish.score == pytest.approx(expected, abs=2 * beta * of_model(hf, read))


def test_hidden_states_and_project_are_the_decoder_s() -> None:
    own = model("t5")
    hidden = torch.randn(3, own.info.hidden_size)
    hf = build_hf(SPECS["t5"])
    error = 2 * of_product(hidden, hf.lm_head.weight)
    assert ((own.project(hidden) - hf.lm_head(hidden)).abs() <= error).all()


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("full")])
def test_a_source_that_cannot_be_encoded_fails_alone(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [request(SPECS["bart"], source) for source in (SOURCE, (3, 59, 59, 59), SOURCE[::-1])]
    alone = [run(engine("bart"), [each])[0] for each in asked]
    encoder = model("bart").encoder
    assert encoder is not None
    encode = encoder.encode

    def unless_59(sources: Batch) -> None:
        if (sources.token_ids == 59).any():
            raise error
        encode(sources)

    monkeypatch.setattr(encoder, "encode", unless_59)
    crowded = engine("bart")
    first, failed, last = run(crowded, asked)
    assert failed.failure is not None
    assert (first.said, last.said) == (alone[0].said, alone[2].said)
    crowded.check_integrity()


def test_rows_that_only_draw_run_ahead_over_their_memories() -> None:
    stopping = StoppingParams(12, ignore_eos=True)
    asked = [request(SPECS["bart"], (*SOURCE, 3 + i), stopping=stopping, strategy=Sampling(2)) for i in range(3)]
    ahead = engine("bart", launches_ahead=True)
    assert [a.said for a in run(ahead, asked)] == [a.said for a in run(engine("bart"), asked)]
    assert ahead.launch_ahead.counters.taken > 20


def test_rows_run_in_two_groups_over_their_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "GROUP_ROWS", 2)
    stopping = StoppingParams(12, ignore_eos=True)
    asked = [request(SPECS["bart"], (*SOURCE, 3 + i), stopping=stopping, strategy=Beam(1, 2)) for i in range(4)]
    in_turns = engine("bart", launches_ahead=True)
    assert [a.said for a in run(in_turns, asked)] == [a.said for a in run(engine("bart"), asked)]
    assert in_turns.turns.counters.groups > 10
