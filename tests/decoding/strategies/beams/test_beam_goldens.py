"""The beam family equals transformers 4.55.4 on tiny models: each alone, and all at once among sampling neighbours."""

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
    Beam,
    BeamSample,
    GroupBeam,
    LogitsParams,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.rounding_error import of_model
from tests.goldens.tiny import TinySpec, build, weights_sha256

RECORDED = json.loads((Path(__file__).parents[3] / "goldens" / "beams.json").read_text(encoding="utf-8"))
ENTRIES = {f"{entry['model_type']}-{len(entry['eos_token_ids'])}-eos": entry for entry in RECORDED["models"]}
FAMILIES = {"beam": Beam, "beam_sample": BeamSample, "group_beam": GroupBeam}
MAX_TOKENS = RECORDED["max_new_tokens"]


@dataclass(frozen=True)
class Case:
    request: Request
    sequences: list[list[int]]
    scores: list[float]
    eos_token_ids: tuple[int, ...]
    key: str

    def assert_answered(self, answer: Answer) -> None:
        """Recorded sequences of group beams leave out the EOS that ended them."""
        assert answer.failure is None, answer.failure
        got = [answer.tokens(i) for i in range(len(self.sequences))]
        if isinstance(self.request.strategy, GroupBeam):
            got = [ids[:-1] if ids[-1] in self.eos_token_ids else ids for ids in got]
        assert got == self.sequences, self.request.strategy
        finishes = [answer.choices[i].finish for i in range(len(got))]
        for finish, recorded, ids in zip(finishes, self.scores, self.sequences, strict=True):
            assert finish is not None
            assert finish.score == pytest.approx(recorded, abs=self.error(len(ids) + 1))  # with the EOS

    def error(self, num_tokens: int) -> float:
        """Of as many log-probs as add up, which warpers and penalties multiply; five decimals were recorded."""
        params, logits = self.request.strategy, self.request.logits
        assert isinstance(params, Beam | BeamSample | GroupBeam)
        scale = max(1.0, logits.repetition_penalty) / min(1.0, logits.temperature)
        return scale * num_tokens ** (1 - params.length_penalty) * logprob_error(self.key) + 5e-6


def strategy(options: dict[str, Any]) -> StrategyParams:
    common = {name: options[name] for name in ("num_beams", "length_penalty", "early_stopping")}
    common["n"] = options["num_return_sequences"]
    if "num_beam_groups" in options:
        groups, penalty = options["num_beam_groups"], options["diversity_penalty"]
        return GroupBeam(num_beam_groups=groups, diversity_penalty=penalty, **common)
    return BeamSample(**common) if options.get("do_sample") else Beam(**common)


def case(key: str, prompt_ids: list[int], recorded: dict[str, Any]) -> Case:
    options, eos_ids = recorded["options"], tuple(ENTRIES[key]["eos_token_ids"])
    filters = {name: options[name] for name in ("temperature", "top_k", "top_p") if name in options}
    penalty = options.get("repetition_penalty", 1.0)
    request = Request(
        tuple(prompt_ids),
        strategy(options),
        LogitsParams(repetition_penalty=penalty, min_tokens_to_keep=1 + len(eos_ids), **filters),
        StoppingParams(MAX_TOKENS, min_tokens=options.get("min_new_tokens", 0)),
        seed=options.get("seed", 0),
    )
    return Case(request, recorded["sequences"], recorded["scores"], eos_ids, key)


def cases(key: str) -> list[Case]:
    prompts = ENTRIES[key]["prompts"]
    return [case(key, p["prompt_token_ids"], recorded) for p in prompts for recorded in p["runs"]]


def of_family(key: str, family: str) -> list[Case]:
    return [one for one in cases(key) if family == one.request.strategy.NAME]


def spec(key: str) -> TinySpec:
    entry = ENTRIES[key]
    return TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))


@cache
def logprob_error(key: str) -> float:
    """Of the model over the longest recorded text; ours and the recorded ones are both rounded."""
    texts = (p["prompt_token_ids"] + run["sequences"][0] for p in ENTRIES[key]["prompts"] for run in p["runs"])
    ids = torch.tensor([max(texts, key=len)])
    return 2 * of_model(build(spec(key)), lambda lm: lm(ids).logits.log_softmax(-1))


@cache
def model(key: str) -> Model:
    wrapped = wrap(build(spec(key)))
    wrapped.attention.allocate(400)
    return wrapped


def engine(key: str, num_pages: int) -> Engine:
    caches = {"main": PageCache(num_pages, model(key).attention.page_size)}
    return make_engine({"main": model(key)}, caches, eos_token_ids=spec(key).eos_token_ids, max_rows=64)


@pytest.mark.parametrize("key", ENTRIES)
def test_the_recording_is_of_these_weights_and_of_every_setting(key: str) -> None:
    assert weights_sha256(build(spec(key))) == ENTRIES[key]["weights_sha256"]
    beams = [c.request.strategy for c in of_family(key, "beam")]
    assert len({(p.length_penalty, p.early_stopping) for p in beams if isinstance(p, Beam)}) == 15
    for family in FAMILIES:
        lengths = [len(ids) for one in of_family(key, family) for ids in one.sequences]
        assert max(lengths) == MAX_TOKENS
        assert min(lengths) < MAX_TOKENS or key == "llama-1-eos"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", ENTRIES)
def test_alone_it_is_token_identical_with_transformers(key: str, family: str) -> None:
    own = of_family(key, family)
    assert len(own) >= 5
    for one in own[::5]:
        one.assert_answered(run(engine(key, 400), [one.request])[0])


@pytest.mark.parametrize("key", ENTRIES)
def test_all_at_once_among_sampling_neighbours_and_preempted_it_is_still_identical(key: str) -> None:
    own = cases(key)
    rng = random.Random(7)
    neighbours = [Request(tuple(rng.choices(range(96), k=20)), Sampling(2), seed=i) for i in range(len(own) // 3)]
    mixed = [(one.request, one) for one in own] + [(request, None) for request in neighbours]
    rng.shuffle(mixed)
    crowded = engine(key, 48)
    answers = run(crowded, [request for request, _ in mixed])
    for (_, one), answer in zip(mixed, answers, strict=True):
        if one is not None:
            one.assert_answered(answer)
    assert crowded.scheduler.counters.preemptions > 5
