"""A model of random weights with a draft and another beside it, once in this process and once behind a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from polydecode import LLM
from tests.conformance.servers.tiny_server import tiny_model, tiny_server
from tests.running_server import RunningServer

SETTINGS = {"dtype": "float32", "threads": 1, "kv_memory": 0.02}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def draft(tiny: Path) -> Path:
    """The same with its output weights a little worn: it guesses much of what the model says."""
    made = Path(shutil.copytree(tiny, tiny.parent / "draft"))
    weights = load_file(made / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].round(decimals=1)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="session")
def llm(tiny: Path, draft: Path) -> Iterator[LLM]:
    with LLM(str(tiny), draft_model=str(draft), also=[f"worn={draft}"], **SETTINGS) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No call leaves rows or pages behind, however it ended."""
    yield
    if "llm" in request.fixturenames:
        assert request.getfixturevalue("llm").used_pages == 0


@pytest.fixture(scope="session")
def server(tiny: Path, draft: Path) -> Iterator[RunningServer]:
    with tiny_server(tiny, "--draft-model", str(draft), "--also", f"worn={draft}") as running:
        yield running
