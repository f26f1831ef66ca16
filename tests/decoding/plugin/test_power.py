"""Power sampling draws whole texts from p ** alpha: counted over all texts of a tiny vocabulary."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from tests.decoding.drive import run
from tests.decoding.plugin.world import PROMPT, ask, builder, engine, params
from tests.decoding.table_model import TableModel

VOCAB, LENGTH, ALPHA, NUM = 4, 3, 2.0, 1200


def logprob(text: tuple[int, ...], prompt: tuple[int, ...]) -> float:
    model, ids, total = TableModel(vocab=VOCAB), list(prompt), 0.0
    for token in text:
        z = model.head(torch.tensor([[model._hash(np.array(ids))]], dtype=torch.float64))[0]
        total += float(z.log_softmax(-1)[token])
        ids.append(token)
    return total


def distance(counts: Counter[tuple[int, ...]], target: dict[tuple[int, ...], float]) -> float:
    """Total variation."""
    return sum(abs(counts[text] / counts.total() - p) for text, p in target.items()) / 2


def powers(alpha: float, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    texts = list(itertools.product(range(VOCAB), repeat=LENGTH))
    weights = [math.exp(alpha * logprob(text, prompt)) for text in texts]
    return {text: weight / sum(weights) for text, weight in zip(texts, weights, strict=True)}


@pytest.mark.parametrize("block", [1, 3])
def test_the_texts_come_as_often_as_their_power_says(block: int) -> None:
    prompt = tuple(token % VOCAB for token in PROMPT)
    strategy = params("power", alpha=ALPHA, block=block, steps=8)
    asked = [ask(strategy, num_tokens=LENGTH, seed=i, prompt=prompt, top=None) for i in range(NUM)]
    answers = run(engine(VOCAB), asked, builder(VOCAB), max_ticks=100_000)
    counts = Counter(tuple(answer.tokens()) for answer in answers)
    own, plain = distance(counts, powers(ALPHA, prompt)), distance(counts, powers(1.0, prompt))
    assert own < 0.06
    assert plain > 3 * own


def test_a_power_of_one_with_the_model_as_proposal_accepts_everything() -> None:
    (answer,) = run(engine(), [ask(params("power", alpha=1, block=4, steps=3))], builder())
    finish = answer.choices[0].finish
    assert finish is not None
    figures = dict(finish.figures)
    assert figures["accepted"] == figures["proposed"] == 9


def test_with_blocks_of_their_own_the_settled_ones_come_before_the_end() -> None:
    busy, said = engine(), []
    busy.add(0, ask(params("power", block=4, reach="block")), builder())
    while busy.has_work:
        said += [len(emit.token_ids) for output in busy.tick() for emit in output.emits]
    assert said == [4, 4, 4]
