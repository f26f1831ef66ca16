"""Slices of what is read; the quantities themselves are shown in test_seam."""

from __future__ import annotations

import torch

from decoding.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.reading import HostCopy
from tests.decoding.drive import run
from tests.decoding.table_model import table_engine


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
