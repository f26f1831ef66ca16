"""What is launched for a tick must not make the host wait for a GPU: nothing in it may hang on a result's contents.

A CPU stands for the GPU: the ways that are chosen there are chosen here, and operations that need a result raise.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import decoding.engine.forward
import decoding.engine.reading
import decoding.logits.filters
import decoding.logits.slow_path
import decoding.topk.scores
from decoding.engine.reading import enqueue
from decoding.logits.context import Context
from decoding.logits.cutoffs import Typical
from decoding.logits.filters import TopP, cut_unseen
from decoding.logits.slow_path import FEW_ROWS
from decoding.logits.step import Step
from decoding.topk.plain import plain_topk
from tests.decoding.conftest import one_thread
from tests.decoding.crowd import DraftTableModel, crowd_token_bytes, random_requests
from tests.decoding.drive import run
from tests.decoding.table_model import TableModel, table_engine

__all__ = ["one_thread"]

aten = torch.ops.aten
LOOKS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten._unique2)


class NoLook(TorchDispatchMode):
    """Raises where the host would have to wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_look = func.overloadpacket in LOOKS
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            is_look = any(i is not None and i.dtype == torch.bool for i in args[1])
        if is_look:
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decoding.logits.filters, decoding.logits.slow_path):
        monkeypatch.setattr(module, "is_asynchronous", lambda _device: True)
    monkeypatch.setattr(decoding.logits.filters, "_unseen_cut", lambda: cut_unseen)
    monkeypatch.setattr(decoding.topk.scores, "_topk_for", lambda _scores: plain_topk)


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    def watch(*args: Any) -> Any:
        with NoLook():
            return function(*args)

    return watch


@pytest.mark.usefixtures("asynchronous")
def test_no_read_of_any_strategy_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 40
    requests = random_requests(random.Random(2), 40, vocab)
    models = {"main": TableModel(vocab=vocab, num_pages=200), "draft": DraftTableModel(num_pages=200)}
    options: dict[str, Any] = {"eos": (3,), "token_bytes": crowd_token_bytes(vocab), "max_rows": FEW_ROWS}
    expected = [answer.said for answer in run(table_engine(models=models, **options), requests)]
    monkeypatch.setattr(decoding.engine.forward, "enqueue", watched(enqueue))
    assert [answer.said for answer in run(table_engine(models=models, **options), requests)] == expected


def test_a_look_is_noticed() -> None:
    with NoLook(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3).nonzero()
    with NoLook(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3).sum().item()
    with NoLook(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3)[torch.ones(3) > 0]


def rough_scores(rows: int) -> torch.Tensor:
    """[rows, 3000] with many equals, as in half precision, and some excluded; every second row is nearly flat."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn((rows, 3000), generator=generator) * torch.tensor([3.0, 0.1]).repeat(rows)[:rows, None]
    scores = (scores * 8).round() / 8
    scores[:, 7::13] = float("-inf")
    return scores


@pytest.mark.parametrize("num_rows", [1, FEW_ROWS, FEW_ROWS + 3])
@pytest.mark.parametrize("step", [TopP(0.9), TopP(0.3), TopP(0.5, keep=9), Typical(0.9), Typical(0.2, keep=3)])
def test_what_is_cut_without_a_look_is_what_is_cut_with_one(
    step: Step, num_rows: int, request: pytest.FixtureRequest
) -> None:
    scores = rough_scores(num_rows)
    context = Context([], scores)
    expected = type(step).apply(scores.clone(), [step] * num_rows, context)
    request.getfixturevalue("asynchronous")
    assert torch.equal(type(step).apply(scores.clone(), [step] * num_rows, context), expected)


def test_a_border_among_equals_needs_no_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are: the best few are enough, also where a run of equals goes on beyond them."""
    scores = rough_scores(2 * FEW_ROWS + 6)[::2]
    p, keep = torch.full((len(scores), 1), 0.5), torch.ones(len(scores), 1)
    expected = TopP.apply(scores.clone(), [TopP(0.5)] * len(scores), Context([], scores))
    few = int((expected > float("-inf")).sum(dim=-1).max())
    monkeypatch.setattr(decoding.logits.filters, "mended", lambda quick, *_: quick)
    with NoLook():
        found = cut_unseen(scores, scores.softmax(dim=-1), p, keep, few=few)
    assert torch.equal(found, expected)
