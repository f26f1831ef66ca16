"""The fake GPU itself: what it holds back, what it refuses, and what it records."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from decoding.device import Arriving, HostCopy, indices, to_device
from tests.decoding.fake_gpu.device import CUDA, FakeGPU, Mixed, Waits, fake_gpu, numbers, refusing_waits


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    with torch.inference_mode(), fake_gpu(monkeypatch) as made:
        yield made


def test_what_is_launched_runs_when_it_is_waited_for(gpu: FakeGPU) -> None:
    a = to_device(np.array([1.0, 2.0, 3.0]), CUDA)
    b = (a * 2 + 1)[1:]
    assert (a.device, b.device, b.shape) == (CUDA, CUDA, (2,))
    assert np.isnan(numbers(b)).all()
    arriving = Arriving(b)
    assert np.isnan(arriving._host.numpy()).all(), "nobody waited"
    assert arriving.wait().tolist() == [5.0, 7.0]


def test_what_is_launched_behind_an_event_is_not_waited_for(gpu: FakeGPU) -> None:
    a = to_device(np.array([1.0]), CUDA)
    arriving, later = Arriving(a), a + 1
    arriving.wait()
    assert np.isnan(numbers(later)).all()
    gpu.synchronize()
    assert numbers(later).tolist() == [2.0]


def test_pinned_memory_that_is_written_again_too_early_is_what_is_copied(gpu: FakeGPU) -> None:
    staging = torch.zeros(2).pin_memory()
    first = staging.to(CUDA, non_blocking=True)
    staging.fill_(7)
    gpu.synchronize()
    assert numbers(first).tolist() == [7, 7]


def test_memory_that_is_not_pinned_is_staged_at_once(gpu: FakeGPU) -> None:
    plain = torch.zeros(2)
    first = plain.to(CUDA, non_blocking=True)
    plain.fill_(7)
    gpu.synchronize()
    assert numbers(first).tolist() == [0, 0]


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.nonzero(),
        lambda t: bool((t > 1).any()),
        lambda t: int(t[0]),
        lambda t: t[t > 1],
        lambda t: t.cpu(),
        lambda t: t.to("cpu"),
        lambda t: t + torch.tensor([1.0], device=CUDA),
        lambda t: t + torch.ones(3).to(CUDA),
        lambda t: torch.equal(t, t),
        lambda t: t[[2, 0]],
        lambda t: 2.0 in t,
    ],
)
def test_looks_of_the_host_are_refused_where_they_are(gpu: FakeGPU, look) -> None:  # type: ignore[no-untyped-def]
    tensor = to_device(np.array([1.0, 2.0, 3.0]), CUDA)
    look(tensor)
    with refusing_waits(gpu), pytest.raises(Waits):
        look(tensor)


def test_what_does_not_look_is_not_refused(gpu: FakeGPU) -> None:
    with refusing_waits(gpu):
        t = to_device(np.array([[1.0, 2.0, 3.0]]), CUDA)
        found = torch.where(t > 1, t, float("-inf")).log_softmax(-1)[indices([0], CUDA)]
        found[:, indices([0], CUDA)] = 5.0
        copy = HostCopy()
        handle = copy.add(torch.cat([found, found.sort(-1).values, torch.zeros(1, 3, device=CUDA)]))
        copy.send()
        copy.fetch()
    assert copy.get(handle)[0, 0] == 5
    assert copy.get(handle)[2].tolist() == [0, 0, 0]


def test_host_and_device_do_not_mix(gpu: FakeGPU) -> None:
    tensor = to_device(np.array([1.0, 2.0, 3.0]), CUDA)
    for mixing in (
        lambda: tensor + torch.ones(3),
        lambda: torch.ones(3) * tensor,
        lambda: torch.cat([torch.ones(3), tensor]),
    ):
        with pytest.raises(Mixed):
            mixing()
    (tensor * torch.tensor(2.0)).numel()  # a number of the host is welcome
    with pytest.raises(TypeError):
        tensor.numpy()


def test_a_replay_does_again_what_was_recorded_over_what_is_there_then(gpu: FakeGPU) -> None:
    held = to_device(np.array([1.0, 2.0]), CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = held * 10
        with pytest.raises(Waits):
            out.tolist()
    for given in ([1.0, 2.0], [3.0, 4.0]):
        held.copy_(torch.tensor(given).pin_memory(), non_blocking=True)
        graph.replay()
        assert Arriving(out).wait().tolist() == [10 * number for number in given]
