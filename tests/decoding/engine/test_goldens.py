"""Greedy decoding of tiny models equals transformers 4.55.4, token for token: alone, and all in one batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from decoding.contract.params import LogitsParams, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.drive import run
from tests.decoding.engines import make_engine
from tests.goldens.tiny import TinySpec, build

ENTRIES = json.loads((Path(__file__).parents[2] / "goldens" / "tiny_greedy.json").read_text(encoding="utf-8"))["models"]
MAX_TOKENS = 24


def engine(model: Model, entry: dict[str, Any]) -> Engine:
    caches = {"main": PageCache(300, model.attention.page_size)}
    return make_engine({"main": model}, caches, eos_token_ids=entry["eos_token_ids"], max_rows=48)


def cases(entry: dict[str, Any]) -> list[tuple[Request, list[int]]]:
    """Every prompt with every variant of penalty and minimum length, and the recorded ids."""
    return [
        (
            Request(
                tuple(prompt["prompt_token_ids"]),
                logits=LogitsParams(temperature=0, repetition_penalty=variant["repetition_penalty"]),
                stopping=StoppingParams(MAX_TOKENS, min_tokens=variant["min_new_tokens"]),
            ),
            variant["token_ids"],
        )
        for prompt in entry["prompts"]
        for variant in prompt["runs"]
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["model_type"] for entry in ENTRIES])
def test_greedy_is_token_identical_alone_and_together(entry: dict[str, Any]) -> None:
    spec = TinySpec(entry["model_type"], entry["config"], entry["seed"], tuple(entry["eos_token_ids"]))
    model = wrap(build(spec))
    model.attention.allocate(300)
    requests, expected = zip(*cases(entry), strict=True)
    together = run(engine(model, entry), requests)
    assert [a.tokens() for a in together] == list(expected)
    alone = [run(engine(model, entry), [request])[0].tokens() for request in requests[::4]]
    assert alone == list(expected[::4])
