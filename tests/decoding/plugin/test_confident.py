"""Confident Decoding against its definition, by a loop over the bare model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.decoding.drive import run
from tests.decoding.plugin.world import PROMPT, ask, builder, engine, params
from tests.decoding.table_model import TableModel, states

NUM_TOKENS = 12


def logits(ids: list[int], layers: tuple[int, ...]) -> list[torch.Tensor]:  # [vocab] each
    """Of the candidates, the last layer's at the end."""
    model = TableModel()
    hidden = states(torch.tensor([model._hash(np.array(ids))], dtype=torch.float64))
    return [*(model.head(hidden + layer)[0] for layer in layers), model.head(hidden)[0]]


def entropy(z: torch.Tensor) -> float:
    p = z.double().softmax(-1)
    return -float((p * p.log()).sum())


def valley(candidates: list[torch.Tensor]) -> int:
    """From the end: on while the one before is surer."""
    at = len(candidates) - 1
    while at > 0 and entropy(candidates[at - 1]) < entropy(candidates[at]):
        at -= 1
    return at


def expected(layers: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The tokens, and the candidate that each came from."""
    ids, chosen = list(PROMPT), []
    for _ in range(NUM_TOKENS):
        candidates = logits(ids, layers)
        chosen.append(valley(candidates))
        ids.append(int(candidates[chosen[-1]].argmax()))
    return ids[len(PROMPT) :], chosen


@pytest.mark.parametrize("layers", [(1,), (1, 2), (0, 1, 2)])
def test_it_takes_the_layer_before_the_entropy_rises(layers: tuple[int, ...]) -> None:
    (answer,) = run(engine(), [ask(params("confident", layers=layers), temperature=0)], builder())
    tokens, chosen = expected(layers)
    assert answer.tokens() == tokens
    assert len(set(chosen)) > 1  # not always the same layer
