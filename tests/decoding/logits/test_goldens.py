"""Each step alone, and all in a chain, against what Hugging Face 4.55.4 gave (tests/goldens/token_steps.json)."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.contract.params import LogitsParams, StoppingParams
from decoding.logits.pipeline import Pipelines
from tests.decoding.logits.rows import history, run, run_all

GOLDEN = Path(__file__).parents[2] / "goldens" / "token_steps.json"
NUM_CASES = 72


@cache
def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def row(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([-math.inf if v is None else v for v in values])


STEPS: dict[str, Any] = {  # name -> the fields that switch it on
    "logit_bias": lambda c: {"logit_bias": tuple((i, b) for i, b in c["logit_bias"])},
    "repetition_penalty": lambda c: {"repetition_penalty": c["repetition_penalty"]},
    "no_repeat_ngram_size": lambda c: {"no_repeat_ngram_size": c["no_repeat_ngram_size"]},
    "bad_words": lambda c: {"bad_words": tuple(tuple(w) for w in c["bad_words"])},
    "exponential_decay_length_penalty": lambda c: {
        "exponential_decay_length_penalty": tuple(c["exponential_decay_length_penalty"])
    },
    **{
        name: (lambda c, name=name: {name: c[name], "min_tokens_to_keep": c["min_tokens_to_keep"]})
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    },
}


def request(case: dict[str, Any], names: list[str]) -> tuple[LogitsParams, StoppingParams]:
    """The parameters of a request with these steps of the case."""
    fields: dict[str, Any] = {}
    for name in names:
        if name in STEPS:
            fields |= STEPS[name](case)
    min_tokens = case["min_new_tokens"] if "min_new_tokens" in names else 0
    return LogitsParams(**fields), StoppingParams(max_tokens=100, min_tokens=min_tokens)


def output_of(case: dict[str, Any], names: list[str]) -> torch.Tensor:
    params, stopping = request(case, names)
    seen = history(case["input_ids"][: case["prompt_length"]], case["input_ids"][case["prompt_length"] :])
    return run(row(golden()["rows"][case["row"]]), params, seen, stopping, Pipelines(case["eos_token_ids"]))


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_every_step_gives_what_hugging_face_gave(index: int) -> None:
    case = golden()["cases"][index]
    for name in (n for n in case["outputs"] if n != "chain"):
        assert torch.equal(output_of(case, [name]), row(case["outputs"][name])), name


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_the_chain_gives_what_hugging_face_gave(index: int) -> None:
    case = golden()["cases"][index]
    assert torch.equal(output_of(case, list(case["outputs"])), row(case["outputs"]["chain"]))


@pytest.mark.parametrize("name", [*STEPS, "min_new_tokens"])
def test_every_step_changes_some_recorded_row(name: str) -> None:
    cases = [c for c in golden()["cases"] if name in c["outputs"]]
    assert sum(c["outputs"][name] != golden()["rows"][c["row"]] for c in cases) >= 5


def test_all_chains_together_give_each_alone() -> None:
    cases = [c for c in golden()["cases"] if c["eos_token_ids"] == [2]]
    requests = [request(c, list(c["outputs"])) for c in cases]
    scores = torch.stack([row(golden()["rows"][c["row"]]) for c in cases])
    seen = [history(c["input_ids"][: c["prompt_length"]], c["input_ids"][c["prompt_length"] :]) for c in cases]
    together = run_all(scores, [p for p, _ in requests], seen, [s for _, s in requests])
    alone = torch.stack([output_of(c, list(c["outputs"])) for c in cases])
    assert torch.equal(together, alone)
