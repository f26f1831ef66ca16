"""Every architecture over a fake GPU: it computes what it computes on a CPU, and the host never waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from decoding.attention.interface import PagedAttention
from decoding.attention.pages import LayerShape
from decoding.device import Arriving
from decoding.model.graphs import CudaCapture
from decoding.model.loading import wrap
from decoding.model.model import Model
from tests.decoding.fake_gpu.attention import PlainAttention
from tests.decoding.fake_gpu.device import CUDA, FakeGPU, Waits, fake_gpu, refusing_waits
from tests.decoding.layout import PageBook, Row
from tests.decoding.model.architectures import built
from tests.decoding.model.test_architectures import SERVED
from tests.decoding.tiny import CONFIGS, tiny

TOKENS = [5 + 7 * at % 83 for at in range(50)]


def plain(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> PagedAttention:
    return PlainAttention(shapes, device=device, dtype=dtype)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    with torch.inference_mode(), fake_gpu(monkeypatch) as made:
        yield made


def made(name: str) -> Any:
    return tiny(name) if name in CONFIGS else built(name)


def on_gpu(lm: Any, gpu: FakeGPU) -> Model:
    gpu.move(lm)
    model = wrap(lm, attention=plain, capture=CudaCapture())
    model.attention.allocate(60)
    return model


def states(model: Model) -> list[torch.Tensor]:
    """Of a prompt, of rows mixed, of two decode steps, of which the second replays."""
    book, rows = PageBook(60, 16), [Row(TOKENS[:40]), Row(TOKENS[10:31]), Row(TOKENS[3:])]
    ticks = [[(rows[0], 30), (rows[1], 19), (rows[2], 9)], [(rows[0], 8), (rows[1], 1), (rows[2], 36)]]
    ticks += [[(rows[0], 1), (rows[2], 1)], [(rows[0], 1), (rows[2], 1)]]
    found = []
    for tick in ticks:
        hidden = model.forward(book.batch(tick), (0,) if len(tick) == 3 else ())
        found += [Arriving(each) for each in (hidden.last, *hidden.layers.values(), model.head(hidden.last))]
    return [torch.from_numpy(each.wait().copy()) for each in found]


NAMES = [*CONFIGS, *SERVED]
WAITING = {
    "gpt2": "looks for its padding token in each forward, where it has one",
    "jetmoe": "splits its tokens by numbers of the host",
    "dbrx": "goes through the experts that were chosen",
    "phimoe": "computes its rotary frequencies on the host in each forward",
}
"""What of transformers' own code waits: served all the same, but no tick of it is recorded."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WAITING])
def test_no_forward_waits_and_each_gives_what_it_gives_on_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        reference = wrap(made(name), attention=plain)
        reference.attention.allocate(60)
        expected = states(reference)
        with fake_gpu(monkeypatch) as gpu:
            model = on_gpu(made(name), gpu)
            states(model)  # a recording may wait while it is made
            with refusing_waits(gpu):
                found = states(model)
    assert model._graphs.is_able, "decode steps are recorded"  # type: ignore[union-attr]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", WAITING)
def test_where_a_forward_waits_nothing_is_recorded(name: str, gpu: FakeGPU) -> None:
    with pytest.warns(UserWarning, match="cannot be recorded"):
        model = on_gpu(made(name), gpu)
    with refusing_waits(gpu), pytest.raises(Waits):
        states(model)


def test_a_forward_that_looks_is_found(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_gpu(tiny("llama"), gpu)
    whole = PlainAttention.forward

    def looking(self: PlainAttention, spec: Any, query: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert query.abs().max() < 1e6
        return whole(self, spec, query, *rest)

    monkeypatch.setattr(PlainAttention, "forward", looking)
    with refusing_waits(gpu), pytest.raises(Waits):
        states(model)


def test_a_mask_of_the_host_s_is_found(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_gpu(tiny("llama"), gpu)
    whole = PlainAttention.forward

    def mixing(self: PlainAttention, spec: Any, query: torch.Tensor, *rest: Any) -> torch.Tensor:
        return whole(self, spec, query * torch.ones(query.shape), *rest)

    monkeypatch.setattr(PlainAttention, "forward", mixing)
    with pytest.raises(RuntimeError, match="on the device and on the host"):
        states(model)


def test_it_is_a_gpu_to_the_model(gpu: FakeGPU) -> None:
    assert on_gpu(tiny("llama"), gpu).info.device == CUDA
