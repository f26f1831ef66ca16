"""What code would launch on a GPU: torch's operations that compute or copy something, and Triton's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not is_view and "empty" not in func._schema.name:
            self._counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def launches() -> Iterator[Counter[str]]:
    """Counts by name. Triton's kernels are counted and not run: what they would write stays as it is."""
    counts: Counter[str] = Counter()

    def run(self: Any, *_args: Any, **_options: Any) -> None:
        counts[self.fn.__name__] += 1

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(False), torch.no_grad(), _Operations(counts):
        patch.setattr(InterpretedFunction, "run", run)
        yield counts
