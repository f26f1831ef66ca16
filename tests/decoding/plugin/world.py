"""The examples of docs/plugin, on engines over tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from decoding.check.table_model import TableModel, table_token_bytes
from decoding.contract.params import LogitsParams, LogprobsParams, Request, StoppingParams, StrategyParams
from decoding.contract.plugin_loading import load_plugins
from decoding.contract.plugins import Plugins
from decoding.engine.engine import Engine
from decoding.strategies import Builder
from tests.decoding.table_model import table_engine

EXAMPLES = Path(__file__).parents[3] / "docs" / "plugin" / "polydecode_examples"
VOCAB = 40
PROMPT = (3, 1, 4, 1, 5)


@cache
def examples() -> Plugins:
    return load_plugins([str(file) for file in sorted(EXAMPLES.glob("[!_]*.py"))])


def params(name: str, **values: Any) -> StrategyParams:
    return examples().params[name](**values)


def builder(vocab: int = VOCAB) -> Builder:
    return Builder(examples(), vocab)


def engine(vocab: int = VOCAB, **options: Any) -> Engine:
    model = TableModel(vocab=vocab, num_pages=200)
    return table_engine(models={"main": model}, token_bytes=table_token_bytes(vocab), **options)


def ask(
    strategy: StrategyParams,
    *,
    num_tokens: int = 12,
    temperature: float = 1.0,
    seed: int = 0,
    prompt: Sequence[int] = PROMPT,
    top: int | None = 1,
    **logits: Any,
) -> Request:
    return Request(
        tuple(prompt),
        strategy,
        LogitsParams(temperature=temperature, **logits),
        StoppingParams(num_tokens),
        LogprobsParams(top),
        seed=seed,
    )
