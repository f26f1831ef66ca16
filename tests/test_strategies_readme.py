"""The worked example of decoding/strategies/README.md is run as it stands there."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.strategies import STRATEGIES, build
from tests.decoding.drive import run
from tests.decoding.strategies.branching import sampling_requests
from tests.decoding.table_model import TableModel, table_engine

README = Path(__file__).parent.parent / "decoding" / "strategies" / "README.md"
PROMPT = (3, 1, 4, 1, 5)
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "lookahead"}
    exec(compile(block, str(README), "exec", dont_inherit=True), names)
    return names


def logprobs(model: TableModel, ids: list[int]) -> torch.Tensor:  # [vocab]
    hashed = torch.tensor([[model._hash(np.array(ids))]], dtype=torch.float64)
    return model.head(hashed)[0].log_softmax(-1)


def look_ahead(k: int) -> list[int]:
    """The definition, with a fresh evaluation of the model for every text."""
    model, ids = TableModel(), list(PROMPT)
    for _ in range(NUM_TOKENS):
        p = logprobs(model, ids)
        tried = p.sort(descending=True, stable=True).indices[:k].tolist()
        ids.append(max(tried, key=lambda x: float(p[x] + logprobs(model, [*ids, x]).max())))
    return ids[len(PROMPT) :]


def ask(example: dict[str, Any], k: int) -> Request:
    strategy = example["Lookahead"](k)
    stopping, reported = StoppingParams(NUM_TOKENS), LogprobsParams(1, prompt=0)
    return Request(PROMPT, strategy, LogitsParams(temperature=0), stopping, reported, pause_ids=())


def building(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "lookahead", example["LookaheadStrategy"])


@pytest.mark.parametrize("k", [1, 3, 6])
def test_it_equals_its_definition_alone_and_in_a_crowd(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    building(example, monkeypatch)
    (alone,) = run(table_engine(), [ask(example, k)])
    assert alone.tokens() == look_ahead(k)
    engine = table_engine(num_pages=40, max_rows=24)
    neighbours = sampling_requests(random.Random(2), 12, 40)
    mixed = run(engine, [ask(example, k), *neighbours, ask(example, k)], build)
    assert engine.scheduler.counters.preemptions > 0
    assert mixed[0].said == mixed[-1].said == alone.said
    assert alone.prompt is not None
    assert len(alone.choices[0].logprobs) == NUM_TOKENS


def test_looking_ahead_changes_the_text(example: dict[str, Any]) -> None:
    assert look_ahead(6) != look_ahead(1)


def test_every_file_and_name_that_the_page_mentions_exists() -> None:
    text = README.read_text(encoding="utf-8")
    folders = (
        README.parent,
        README.parent / "parts",
        README.parents[1],
        README.parents[2],
        README.parents[1] / "contract" / "params",
    )
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any((folder / name).exists() for folder in folders), name
