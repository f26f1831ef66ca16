"""What a GPU's forward is made of, shown on the CPU: the shapes that products and norms run on, not their bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from decoding.model.attention_function import register
from decoding.model.replace_modules import make_fast
from tests.decoding.rounding_error import of_model
from tests.decoding.tiny import tiny


class Watch(TorchFunctionMode):
    """Notes how many rows every product and every fused norm gets."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            self.rows.append(args[0].numel() // args[0].shape[-1])
        elif func is F.rms_norm:
            self.rows.append(args[0].shape[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[int]]:
    with Watch() as watch, torch.inference_mode():
        yield watch.rows


def logits(model: PreTrainedModel, length: int) -> torch.Tensor:  # [length, vocab]
    ids = torch.arange(length)[None] % 90
    return model(input_ids=ids, use_cache=False).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_fast_model_computes_the_same_in_fewer_operations(name: str) -> None:
    model = tiny(name)
    with torch.inference_mode():
        expected = logits(model, 20)
    with watched() as before:
        logits(model, 20)
    make_fast(model)
    with watched() as after:
        found = logits(model, 20)
    error = 2 * of_model(tiny(name), lambda exact: logits(exact, 20))
    torch.testing.assert_close(found, expected, rtol=0, atol=error)
    norms = 2 * 3 + 1 if name == "llama" else 4 * 3 + 1
    assert len(after) == len(before) - 3 * 3 + norms  # q|k|v and gate|up are one product each in three layers


@pytest.mark.parametrize(("device", "experts"), [("cpu", "eager"), ("meta", "grouped_mm")])
def test_only_a_cpu_goes_through_experts_one_by_one(device: str, experts: str) -> None:
    """Which waits for the router's choice: no GPU's forward could be recorded."""
    lm = tiny("mixtral", num_hidden_layers=1).to(device)  # type: ignore[arg-type]
    register(lm)
    assert lm.config._experts_implementation == experts
