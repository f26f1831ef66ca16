"""Ties and slices of what is read; the quantities themselves are shown in test_seam."""

from __future__ import annotations

import torch

from decoding.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.reading import HostCopy, top, top_by_key
from tests.decoding.drive import run
from tests.decoding.table_model import table_engine


def test_top_lists_the_lower_id_first_among_equals_also_at_the_border() -> None:
    scores = torch.zeros(2, 100)
    scores[0, [90, 10]] = 2.0
    scores[1, [5, 50, 95]] = torch.tensor([1.0, 3.0, 1.0])
    values, ids = top(scores, 3)
    assert ids.tolist() == [[10, 90, 0], [50, 5, 95]]
    assert values.tolist() == [[2, 2, 0], [3, 1, 1]]


def test_top_of_more_than_the_vocabulary_is_the_vocabulary() -> None:
    assert top(torch.tensor([[1.0, 3.0, 2.0]]), 9)[1].tolist() == [[1, 2, 0]]


def test_the_order_that_a_gpu_uses_is_the_same() -> None:
    scores = torch.randn(40, 500, generator=torch.Generator().manual_seed(0)).mul(3).round()  # many equals
    scores[3, 7] = -0.0
    scores[4, 100:] = float("-inf")
    scores[5] = -1e-40
    for k in (1, 5, 500):
        for found, expected in zip(top_by_key(scores, k), top(scores, k), strict=True):
            assert torch.equal(found, expected)


def test_the_host_copy_keeps_shapes_and_exact_ids() -> None:
    copy = HostCopy()
    big = copy.add(torch.tensor([2**52 + 1]))
    matrix = copy.add(torch.arange(6.0).reshape(2, 3))
    copy.send()
    copy.fetch()
    assert int(copy.get(big)[0]) == 2**52 + 1
    assert copy.get(matrix).shape == (2, 3)


def test_a_prompt_longer_than_a_slice_is_scored_at_every_position() -> None:
    prompt = tuple(i % 37 for i in range(300))
    request = Request(prompt, Sampling(), LogitsParams(temperature=0), StoppingParams(0), LogprobsParams(prompt=1))
    engine = table_engine(num_pages=120, tick_tokens=70)
    (answer,) = run(engine, [request])
    assert answer.prompt is not None
    assert len(answer.prompt.logprobs) == 300
    assert answer.prompt.logprobs[0] is None
    whole = run(table_engine(num_pages=120, tick_tokens=512), [request])[0]
    assert answer.prompt == whole.prompt
