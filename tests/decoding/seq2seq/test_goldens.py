"""Encoder-decoder models say what transformers 4.55.4 lets them say: runs alone, at random arrivals, and preempted."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.contract.params import (
    Assisted,
    Beam,
    Contrastive,
    GroupBeam,
    LogitsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from tests.decoding.conftest import one_thread
from tests.decoding.crowd import run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.rounding_error import of_model
from tests.decoding.seq2seq.world import SPECS, engine, request
from tests.goldens.seq2seq import Seq2SeqSpec, build
from tests.goldens.tiny import weights_sha256

RECORDED = json.loads((Path(__file__).parents[2] / "goldens" / "seq2seq.json").read_text(encoding="utf-8"))
ENTRIES = {entry["name"]: entry for entry in RECORDED["models"]}
MAX_TOKENS, NOISE = RECORDED["max_new_tokens"], RECORDED["draft_noise"]

__all__ = ["one_thread"]


@dataclass(frozen=True)
class Case:
    request: Request
    sequences: list[list[int]]
    scores: list[float] | None
    eos_token_ids: tuple[int, ...]
    name: str

    def assert_answered(self, answer: Answer) -> None:
        """Recorded sequences of group beams leave out the EOS that ended them."""
        assert answer.failure is None, answer.failure
        got = [answer.tokens(i) for i in range(len(self.sequences))]
        if isinstance(self.request.strategy, GroupBeam):
            got = [ids[:-1] if ids[-1] in self.eos_token_ids else ids for ids in got]
        assert got == self.sequences, self.request
        if self.scores is not None:
            finishes = [answer.choices[i].finish for i in range(len(got))]
            for finish, recorded, ids in zip(finishes, self.scores, self.sequences, strict=True):
                assert finish is not None
                assert finish.score == pytest.approx(recorded, abs=self.error(len(ids)))

    def error(self, num_tokens: int) -> float:
        """Of as many log-probs as add up, which penalties multiply; five decimals were recorded."""
        params = self.request.strategy
        assert isinstance(params, Beam | GroupBeam)
        scale = self.request.logits.repetition_penalty * num_tokens ** (1 - params.length_penalty)
        return scale * logprob_error(self.name) + 5e-6


@cache
def logprob_error(name: str) -> float:
    """Of the model over the longest recorded text; ours and the recorded ones are both rounded."""
    recorded = [(s["source_ids"], run["sequences"][0]) for s in ENTRIES[name]["sources"] for run in s["runs"]]
    source, output = max(recorded, key=lambda pair: len(pair[0]) + len(pair[1]))
    ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([[SPECS[name].start, *output]])}
    return 2 * of_model(build(SPECS[name]), lambda lm: lm(**ids).logits.log_softmax(-1))


def strategy(options: dict[str, Any]) -> StrategyParams:
    if "num_beams" in options:
        common = {name: options[name] for name in ("num_beams", "length_penalty", "early_stopping")}
        common["n"] = options["num_return_sequences"]
        if "num_beam_groups" in options:
            groups, penalty = options["num_beam_groups"], options["diversity_penalty"]
            return GroupBeam(num_beam_groups=groups, diversity_penalty=penalty, **common)
        return Beam(**common)
    if "penalty_alpha" in options:
        return Contrastive(options["penalty_alpha"], options["top_k"])
    if "num_assistant_tokens" in options:
        return Assisted(options["num_assistant_tokens"], "constant", 0.0)
    if "prompt_lookup_num_tokens" in options:
        return PromptLookup(options["prompt_lookup_num_tokens"], options["max_matching_ngram_size"])
    return Sampling()


def case(spec: Seq2SeqSpec, source: list[int], recorded: dict[str, Any]) -> Case:
    options = recorded["options"]
    logits = LogitsParams(
        temperature=0,
        repetition_penalty=options.get("repetition_penalty", 1.0),
        no_repeat_ngram_size=options.get("no_repeat_ngram_size", 0),
        bad_words=tuple(tuple(word) for word in options.get("bad_words_ids", ())),
        forced_bos_token_id=options.get("forced_bos_token_id"),
        forced_eos_token_ids=spec.eos_token_ids[:1] if options.get("forced_eos_token_id") else (),
    )
    asked = request(
        spec,
        source,
        strategy=strategy(options),
        logits=logits,
        stopping=StoppingParams(MAX_TOKENS, min_tokens=options.get("min_new_tokens", 0)),
        prompt_ids=(spec.start, *options.get("decoder_prompt", ())),
    )
    return Case(asked, recorded["sequences"], recorded.get("scores"), spec.eos_token_ids, spec.name)


def cases(name: str) -> list[Case]:
    return [
        case(SPECS[name], source["source_ids"], recorded)
        for source in ENTRIES[name]["sources"]
        for recorded in source["runs"]
    ]


@pytest.mark.parametrize("name", SPECS)
def test_the_recording_is_of_these_weights_and_of_every_strategy(name: str) -> None:
    assert weights_sha256(build(SPECS[name])) == ENTRIES[name]["weights_sha256"]
    found = {type(one.request.strategy) for one in cases(name)}
    expected: set[type] = {Sampling}
    if SPECS[name].is_searched:
        expected |= {Beam, Contrastive, Assisted}
        expected |= (
            {GroupBeam} if name != "bart" else set()
        )  # whose groups all find the same texts, so nothing ranks them
        expected |= {PromptLookup} if name in ("t5", "marian") else set()
    assert found == expected


@pytest.mark.parametrize("name", SPECS)
def test_alone_it_is_token_identical_with_transformers(name: str) -> None:
    for one in cases(name)[::5]:
        one.assert_answered(run(engine(name, draft_noise=NOISE), [one.request])[0])


@pytest.mark.parametrize("name", SPECS)
def test_at_random_arrivals_it_is_still_identical(name: str) -> None:
    rng = random.Random(3)
    own = rng.sample(cases(name), 16)
    crowded = engine(name, num_pages=14, draft_noise=NOISE, tick_tokens=48)
    answers = run_crowd(crowded, [one.request for one in own], rng)
    assert len(answers) > 8
    for index, answer in answers.items():
        own[index].assert_answered(answer)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.is_searched])
def test_all_searches_at_once_and_preempted_are_still_identical(name: str) -> None:
    own = [one for one in cases(name) if isinstance(one.request.strategy, Beam | GroupBeam | Contrastive)][:12]
    crowded = engine(name, num_pages=14)
    for one, answer in zip(own, run(crowded, [one.request for one in own]), strict=True):
        one.assert_answered(answer)
    assert crowded.scheduler.counters.preemptions > 0
