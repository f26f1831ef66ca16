"""The fixtures of this directory hold under the installed transformers, checked without its `generate`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as hf

from tests.goldens.tiny import TinySpec, build, weights_sha256

HERE = Path(__file__).parent
MODELS = ("llama", "gpt2", "qwen2")


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Thread hand-offs cost more than these tiny matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def fixture(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def tiny_entry(model_type: str) -> dict[str, Any]:
    return next(entry for entry in fixture("tiny_greedy.json")["models"] if entry["model_type"] == model_type)


@cache
def tiny_model(model_type: str) -> Any:
    entry = tiny_entry(model_type)
    return build(TinySpec(model_type, entry["config"], entry["seed"], tuple(entry["eos_token_ids"])))


def processed(logits: list[float], history: list[int], penalty: float, banned: list[int]) -> list[float]:
    """One row of V logits after the sign-aware penalty over `history` and the ban of `banned`, spelled out id by id."""
    row = list(logits)
    for token_id in set(history):
        row[token_id] = row[token_id] * penalty if row[token_id] < 0 else row[token_id] / penalty
    for token_id in banned:
        row[token_id] = -math.inf
    return row


@torch.no_grad()
def assert_greedy(model: Any, prompt_ids: list[int], run: dict[str, Any], eos_ids: list[int]) -> None:
    """Each id of `run` is the argmax after the ids before it, by one forward over the whole text without a cache."""
    ids = run["token_ids"]
    logits = model(torch.tensor([prompt_ids + ids]), use_cache=False).logits[0].tolist()  # T rows of V
    for i, token_id in enumerate(ids):
        banned = eos_ids if i < run["min_new_tokens"] else []
        row = processed(logits[len(prompt_ids) + i - 1], prompt_ids + ids[:i], run["repetition_penalty"], banned)
        assert row.index(max(row)) == token_id


@pytest.mark.parametrize("model_type", MODELS)
def test_tiny_weights_are_those_of_the_recording(model_type: str) -> None:
    assert weights_sha256(tiny_model(model_type)) == tiny_entry(model_type)["weights_sha256"]


@pytest.mark.parametrize("model_type", MODELS)
def test_tiny_paths_are_greedy(model_type: str) -> None:
    entry = tiny_entry(model_type)
    for prompt in entry["prompts"]:
        for run in prompt["runs"]:
            assert_greedy(tiny_model(model_type), prompt["prompt_token_ids"], run, entry["eos_token_ids"])


@pytest.mark.parametrize("model_type", MODELS)
def test_tiny_paths_end_at_the_first_eos_or_at_the_limit(model_type: str) -> None:
    entry, limit = tiny_entry(model_type), fixture("tiny_greedy.json")["max_new_tokens"]
    for run in (run for prompt in entry["prompts"] for run in prompt["runs"]):
        ended = [i for i, token_id in enumerate(run["token_ids"]) if token_id in entry["eos_token_ids"]]
        assert run["finish_reason"] == ("stop" if ended else "length")
        assert len(run["token_ids"]) == (ended[0] + 1 if ended else limit)


@pytest.mark.parametrize("model_type", MODELS)
def test_every_tiny_option_changes_some_path(model_type: str) -> None:
    runs = [[run["token_ids"] for run in prompt["runs"]] for prompt in tiny_entry(model_type)["prompts"]]
    assert any(plain != penalised for plain, penalised, _, _ in runs)
    assert any(plain != longer or penalised != both for plain, penalised, longer, both in runs)


def read_row(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([-math.inf if value is None else value for value in values])


def make_step(name: str, case: dict[str, Any]) -> Any:
    makers: dict[str, Any] = {
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
    }
    if name == "min_new_tokens":
        minimum = (case["prompt_length"], case["min_new_tokens"], case["eos_token_ids"])
        return hf.MinNewTokensLengthLogitsProcessor(*minimum)
    return makers[name](case[name])


def test_recorded_processors_agree_with_the_installed_transformers() -> None:
    recorded = fixture("processors.json")
    for case in recorded["cases"]:
        history, logits = torch.tensor([case["input_ids"]]), read_row(recorded["rows"][case["row"]])[None]
        chained = logits
        for name in (name for name in case["outputs"] if name != "chain"):
            step = make_step(name, case)
            assert torch.equal(step(history, logits.clone())[0], read_row(case["outputs"][name]))
            chained = step(history, chained)
        assert torch.equal(chained[0], read_row(case["outputs"]["chain"]))


@pytest.mark.parametrize("option", ["repetition_penalty", "min_new_tokens", "temperature", "top_k", "top_p", "min_p"])
def test_every_processor_changes_some_recorded_row(option: str) -> None:
    recorded = fixture("processors.json")
    changed = [
        c
        for c in recorded["cases"]
        if c["outputs"].get(option, recorded["rows"][c["row"]]) != recorded["rows"][c["row"]]
    ]
    assert len(changed) >= 5


def test_smollm2_fixture_is_consistent() -> None:
    recorded = fixture("smollm2_greedy.json")
    assert len(recorded["prompts"]) == 20
    for entry in recorded["prompts"]:
        ids, has_ended = entry["token_ids"], entry["finish_reason"] == "stop"
        assert len(entry["logprobs"]) == len(ids) <= recorded["max_new_tokens"]
        assert (ids[-1] in recorded["eos_token_ids"]) == has_ended
        assert has_ended or len(ids) == recorded["max_new_tokens"]
        assert not set(ids[:-1]) & set(recorded["eos_token_ids"])
        assert entry["min_gap"] >= 1e-3
