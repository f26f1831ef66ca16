"""What the worker is told to load is what the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import load
from server.startup import start_frame


@pytest.mark.parametrize("flags", [[], ["--batch-invariant"]])
def test_the_worker_hears_of_batch_invariance(flags: list[str]) -> None:
    frame = start_frame(load([*flags, "--device", "cuda"], {}).settings, Path("model"), (), None)
    assert (frame.model, frame.device, frame.batch_invariant) == ("model", "cuda", bool(flags))
