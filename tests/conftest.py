"""Fixtures that many test files share. What costs seconds to build is built once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# triton reads this when it is imported, which transformers may do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from decoding.gguf.embedded import ensure_directory
from tests.running_server import RunningServer, running_server

LONG = (
    "test_smollm2_strategies.py",
    "test_docker.py",
    "test_lifecycle.py",
    "test_promises.py",
    "test_mixed.py",
    "test_parity.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Each file's tests run in one process, and so do those of all files that share a server."""
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 - the tests run without it, too

    class Together(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "smol_server" if "smol_server" in (config.rootpath / file).read_text(encoding="utf-8") else file

    return Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes, none shall end with a long file while the others have nothing left to do."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """No test leaves a signal handler in this process: SIGTERM must go on ending it as the next test found it."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """For a test that runs in this process what takes SIGTERM: afterwards it is as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def smol_directory() -> Path:
    """The embedded SmolLM2-135M-Instruct as a Hugging Face directory, in the user's cache."""
    return ensure_directory(None, lambda *_: None)


@pytest.fixture(scope="session")
def smol_server() -> Iterator[RunningServer]:
    """The real server with the embedded model in float32. Shared: tests leave it as they found it."""
    with running_server("--dtype", "float32") as server:
        yield server
