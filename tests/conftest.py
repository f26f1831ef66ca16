"""Fixtures that many test files share. What costs seconds to build is built once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# triton reads this when it is imported, which transformers may do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from decoding.embedded import ensure_directory
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="session")
def smol_directory() -> Path:
    """The embedded SmolLM2-135M-Instruct as a Hugging Face directory, in the user's cache."""
    return ensure_directory(None, lambda *_: None)


@pytest.fixture(scope="session")
def smol_server() -> Iterator[RunningServer]:
    """The real server with the embedded model in float32. Shared: tests leave it as they found it."""
    with running_server("--dtype", "float32") as server:
        yield server
