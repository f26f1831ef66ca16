"""Assisted and prompt-lookup generation of transformers 4.55.4: the same tokens, and round by round the same drafts.

Three tiny architectures with a draft model that mostly agrees; all recorded runs of one model in one batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decoding.contract.params import Assisted, LogitsParams, PromptLookup, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from tests.decoding.conftest import one_thread
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.goldens.tiny import TinySpec, build, perturbed

GOLDENS = Path(__file__).parents[2] / "goldens"
RECORDED = json.loads((GOLDENS / "speculation.json").read_text(encoding="utf-8"))
SPECS = {
    entry["model_type"]: TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))
    for entry in json.loads((GOLDENS / "tiny_greedy.json").read_text(encoding="utf-8"))["models"]
}

__all__ = ["one_thread"]


def engine(spec: TinySpec) -> Engine:
    models = {"main": wrap(build(spec)), "draft": wrap(perturbed(build(spec), RECORDED["draft_noise"]))}
    for model in models.values():
        model.attention.allocate(600)
    caches = {name: PageCache(600, model.attention.page_size) for name, model in models.items()}
    return make_engine(models, caches, eos_token_ids=spec.eos_token_ids)


def request(prompt_ids: list[int], recorded: dict[str, Any]) -> Request:
    params = recorded["params"]
    strategies = {
        "assisted": lambda: Assisted(RECORDED["num_assistant_tokens"], **params),
        "prompt_lookup": lambda: PromptLookup(**params),
    }
    return Request(
        tuple(prompt_ids),
        strategies[recorded["strategy"]](),
        LogitsParams(0, repetition_penalty=recorded["repetition_penalty"]),
        StoppingParams(RECORDED["max_new_tokens"]),
        trace=True,
    )


def rounds_of(answer: Answer) -> list[tuple[int, int]]:
    """(drafted, accepted) of each round."""
    return [(len(e.values["drafts"]), e.values["accepted"]) for e in answer.trace if e.kind == "verification"]  # type: ignore[arg-type,misc]


def expected_rounds(recorded: dict[str, Any]) -> list[tuple[int, int]]:
    """Hugging Face's rounds, drafts cut to what may still be said: its lookup may propose more."""
    left = RECORDED["max_new_tokens"] - 1
    rounds = []
    for drafted, matched in recorded["rounds"]:
        rounds.append((min(drafted, left - 1), matched))
        left -= matched + 1
    return rounds


@pytest.mark.parametrize("entry", RECORDED["models"], ids=lambda entry: entry["model_type"])
def test_tokens_and_rounds_are_those_of_transformers(entry: dict[str, Any]) -> None:
    recorded = [(prompt["prompt_token_ids"], one) for prompt in entry["prompts"] for one in prompt["runs"]]
    assert len(recorded) > 30
    answers = run(engine(SPECS[entry["model_type"]]), [request(*one) for one in recorded])
    for (_, golden), answer in zip(recorded, answers, strict=True):
        assert answer.failure is None
        assert answer.tokens() == golden["token_ids"], golden
        # The last round is not compared: where the text ends inside it, 4.55.4 counts one match less.
        assert rounds_of(answer)[:-1] == expected_rounds(golden)[:-1], golden
    kinds = {golden["strategy"] for _, golden in recorded for _, matched in golden["rounds"] if matched}
    assert kinds == {"assisted", "prompt_lookup"}
