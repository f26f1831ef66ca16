"""What runs on a GPU, run here over tensors that only claim to be on one.

They know device, type and shape: an operation that mixes host and device raises, and so does one whose result the host
would have to wait for, which no recording could hold either.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import decoding.forwarding
import decoding.topk.scores
from decoding.logits.unclear import FEW_ROWS
from decoding.plug import NAME, register
from decoding.reading import HostCopy, Read, ReadSlice, enqueue
from decoding.rewrite import merge_only
from decoding.topk.plain import plain_topk
from tests.decoding.crowd import DraftTableModel, crowd_token_bytes, random_requests
from tests.decoding.drive import run
from tests.decoding.table_model import TableModel, table_engine
from tests.decoding.tiny import CONFIGS, tiny

GPU = torch.device("cuda")
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class NoMixing(TorchDispatchMode):
    """Raises where an operation takes tensors of both devices: torch would wait to move an index, or refuse."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()]
        if len({t.device.type for t in tensors}) > 1 and func.overloadpacket not in COPIES:
            raise AssertionError(f"{func} mixes host and device")
        return func(*args, **(kwargs or {}))


@contextmanager
def claimed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), NoMixing():
        yield


class Claimed:
    """Hidden states and a head on the GPU, of the shapes that the table model's have."""

    def __init__(self, model: Any, hidden: Any) -> None:
        self._vocab = model.head(hidden.last[:1]).shape[-1]
        self._last, self._layers, self._probed = hidden.last.shape, hidden.layers, hidden.probed

    @property
    def last(self) -> torch.Tensor:
        return torch.empty(self._last, device=GPU)

    @property
    def layers(self) -> dict[int, torch.Tensor]:
        return {index: torch.empty(states.shape, device=GPU) for index, states in self._layers.items()}

    @property
    def probed(self) -> dict[int, torch.Tensor]:
        return {row: torch.empty(scores.shape, device=GPU) for row, scores in self._probed.items()}

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(hidden), self._vocab, device=hidden.device)

    project = head


def test_no_read_of_any_strategy_mixes_devices_or_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 40
    requests = random_requests(random.Random(2), 40, vocab)
    models = {"main": TableModel(vocab=vocab, num_pages=200), "draft": DraftTableModel(num_pages=200)}
    options: dict[str, Any] = {"eos": (3,), "token_bytes": crowd_token_bytes(vocab), "max_rows": FEW_ROWS}
    monkeypatch.setattr(decoding.topk.scores, "_topk_for", lambda _scores: plain_topk)

    def on_both(model: Any, hidden: Any, reads: Sequence[Read], copy: HostCopy) -> list[ReadSlice]:
        stand_in = Claimed(model, hidden)
        with monkeypatch.context() as patch, claimed(patch):
            enqueue(stand_in, stand_in, reads, HostCopy())
        return enqueue(model, hidden, reads, copy)

    monkeypatch.setattr(decoding.forwarding, "enqueue", on_both)
    assert len(run(table_engine(models=models, **options), requests)) == len(requests)


class Attention:
    """Takes what the layers pass and gives what they expect, of no matter what content."""

    def receive(
        self, _module: Any, query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, _options: Any
    ) -> torch.Tensor:
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decode_step_can_be_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(monkeypatch), torch.inference_mode():
        with torch.device(GPU):
            lm: Any = tiny(name, num_hidden_layers=2).bfloat16()
        register(lm)
        merge_only(lm)
        ids = torch.empty(1, 5, dtype=torch.int64, device=GPU)
        out = lm.base_model(input_ids=ids, position_ids=ids, use_cache=False, **{NAME: Attention()})
        assert out.last_hidden_state.device.type == "cuda"
