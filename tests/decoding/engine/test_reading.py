"""Slices of what is read; the quantities themselves are shown in test_seam."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.device import HostCopy
from decoding.engine import reading
from decoding.engine.reading import Read, Unreadable, enqueue
from decoding.engine.rows import TokenLog
from decoding.logits.pipeline import NEUTRAL
from decoding.seam import Draw, Purpose, Reading, Want
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


@dataclass(frozen=True, slots=True)
class States:
    """A model's last forward, whose memory the next one uses again."""

    last: torch.Tensor
    layers: dict[int, torch.Tensor]
    probed: dict[int, torch.Tensor]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    project = head


def test_hidden_states_are_those_of_their_own_forward() -> None:
    """A tick may have two; recorded ones leave their results in one place, and all is sent after the second."""
    states, copy = States(torch.ones(1, 4), {}, {}), HostCopy()
    log = TokenLog()
    log.append((5,), is_injected=False)
    read = Read(0, 0, 0, Want(hidden=True), NEUTRAL, 0, log, 1, None)
    (part,) = enqueue(states, states, [read], copy)
    states.last.zero_()
    copy.send()
    copy.fetch()
    (found,) = part.collect()
    assert isinstance(found, Reading)
    assert found.hidden is not None
    assert found.hidden.tolist() == [1, 1, 1, 1]


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


def test_draws_in_kernels_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read that draws twice, one that takes the best, one whose scores are not finite."""
    pytest.importorskip("triton")
    from decoding.topk.draws import triton_draws  # noqa: PLC0415 - needs triton

    scores = torch.randn(3, 200, generator=torch.Generator().manual_seed(2))
    scores[2, 7] = torch.nan
    sampled, log = replace(NEUTRAL, is_greedy=False), TokenLog()
    log.append((5,), is_injected=False)
    draws = (Draw(0, Purpose.SAMPLE), Draw(1, Purpose.SAMPLE))
    found = []
    for kernels in (None, triton_draws):
        monkeypatch.setattr(reading, "draw_kernels", lambda _device, kernels=kernels: kernels)
        reads = [
            Read(k, k, 4, Want(draws=draws[:count]), pipeline, 9 + k, log, 1, None)
            for k, (count, pipeline) in enumerate(((2, sampled), (1, NEUTRAL), (1, sampled)))
        ]
        copy = HostCopy()
        (part,) = enqueue(States(scores, {}, {}), States(scores, {}, {}), reads, copy)
        copy.send()
        copy.fetch()
        found.append(part.collect())
    assert found[0] == found[1]
    assert [len(read.tokens) for read in found[0][:2] if isinstance(read, Reading)] == [2, 1]
    assert found[0][2] == Unreadable(is_excluded=False)
