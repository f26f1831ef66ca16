"""Plugins in the real server: in one batch with everything else; what is wrong with one is its own affair."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conformance.servers.tiny_server import FLAGS, tiny_model, tiny_server
from tests.decoding.plugin.world import EXAMPLES
from tests.running_server import RunningServer, clean_environment

Body = dict[str, Any]

RAISING = """
from dataclasses import dataclass
from typing import Annotated

from decoding.plugin import Plugin, PluginStep, PluginStrategy, Says, Strategy


@dataclass(frozen=True, slots=True)
class Raising(PluginStrategy):
    NAME = WITHIN = "raising"

    at_once: Annotated[bool, Says("Whether it raises before the prompt has run.")] = False

    @classmethod
    def sample(cls, rng):
        return cls()

    def decode(self, request, stopping, tools):
        from decoding.plugin.words import Move, Report, open_prompt

        if not self.at_once:
            yield Move((open_prompt(request, Report(request).want(top_k=1)),))
        raise RuntimeError("on purpose")


@dataclass(frozen=True, slots=True)
class RaisingStep(PluginStep):
    NAME, KIND, PURPOSE = "raising_step", "mask", "To raise."

    def step(self, eos_token_ids, token_bytes):
        return self

    @staticmethod
    def apply(scores, steps, context):
        raise RuntimeError("on purpose")


PLUGIN = Plugin("raising", "0.1", steps=(RaisingStep,), strategies=(
    Strategy("raising", Raising, "To raise.", "", when=("raising",)),
))
"""

ASKING: dict[str, Body] = {
    "power": {"power": {"block": 4, "steps": 3}, "temperature": 0.5},
    "confident": {"confident": {"layers": [1, 2]}, "temperature": 0.8},
    "phrase_ban": {"phrase_ban": {"phrases": ["a", "e", "th"]}, "temperature": 1.2},
    "lookahead": {"lookahead": {"k": 3}},
    "top_a": {"top_a": {"a": 0.3}, "temperature": 1.3, "n": 2},
    "shortest": {"best_of": 3, "best_of_rank": "shortest", "temperature": 1.1},
    "beam": {"num_beams": 3, "n": 2},
    "sampling": {"n": 3, "temperature": 1.0},
}
COMMON: Body = {"prompt": list(range(40, 60)), "max_tokens": 14, "logprobs": 2, "echo": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    raising = tmp_path_factory.mktemp("raising") / "raising.py"
    raising.write_text(RAISING)
    files = [*sorted(EXAMPLES.glob("[!_]*.py")), raising]
    with tiny_server(model, *(flag for file in files for flag in ("--plugin", str(file)))) as running:
        yield running


async def complete(http: httpx.AsyncClient, body: Body) -> httpx.Response:
    return await http.post("/v1/completions", json=COMMON | body, timeout=120)


def said(answer: httpx.Response) -> Any:
    """All that must be the same alone and in a crowd."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"], body["decoding"]["strategy"], body["decoding"]["effective"]


async def test_alone_and_mixed_they_answer_the_same(server: RunningServer) -> None:
    bodies = [{**body, "seed": seed} for seed in range(3) for body in ASKING.values()]
    async with httpx.AsyncClient(base_url=server.url) as http:
        raising = [complete(http, {"raising": {"at_once": i % 2 == 0}}) for i in range(4)]
        mixed, failed = await asyncio.gather(
            asyncio.gather(*(complete(http, body) for body in bodies)), asyncio.gather(*raising)
        )
        alone = [await complete(http, body) for body in bodies]
    assert [said(answer) for answer in mixed] == [said(answer) for answer in alone]
    assert {answer.status_code for answer in failed} == {500}
    used = [answer.json()["decoding"]["effective"].get("plugins") for answer in alone[: len(ASKING)]]
    versions = ["power", "confident", "phrase_ban", "lookahead", "extras", "extras"]
    assert used == [*({name: "1.0"} for name in versions), None, None]


async def test_the_banned_phrases_are_in_no_answer(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        body = {**ASKING["phrase_ban"], "echo": False, "logprobs": None, "max_tokens": 40}
        texts = [(await complete(http, body | {"seed": i})).json()["choices"][0]["text"] for i in range(6)]
    assert not [phrase for phrase in ("a", "e", "th") for text in texts if phrase in text]


async def test_a_plugin_that_raises_again_and_again_ends_no_worker(server: RunningServer) -> None:
    (worker,) = psutil.Process(server.pid).children()
    async with httpx.AsyncClient(base_url=server.url) as http:
        answers = [await complete(http, body) for body in ({"raising": {}}, {"raising_step": {}}) for _ in range(8)]
        assert {answer.status_code for answer in answers} == {500}
        assert (await complete(http, ASKING["beam"])).status_code == 200
        metrics = (await http.get("/metrics")).text
    assert [child.pid for child in psutil.Process(server.pid).children()] == [worker.pid]
    assert 'polydecode_requests_total{endpoint="completions",outcome="error",strategy="raising"}' in metrics


def test_the_server_s_process_has_no_torch(server: RunningServer) -> None:
    mapped = {Path(each.path).name for each in psutil.Process(server.pid).memory_maps()}
    assert not [name for name in mapped if name.startswith("libtorch")]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import torch\nPLUGIN = None", "its PLUGIN is no Plugin"),
        (RAISING + "import torch", "it imports torch"),
        (RAISING.replace("from decoding.plugin.words", "from no_other_half"), "No module named 'no_other_half'"),
        (RAISING.replace('WITHIN = "raising"', 'WITHIN = "raising"; WITHIN = "stop"'), "stop is a field of somebody"),
    ],
)
def test_one_that_cannot_be_loaded_ends_the_start(model: Path, tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    flags = ["--port", "0", "--model", str(model), *FLAGS, "--plugin", str(tmp_path / "mine.py")]
    ended = subprocess.run(
        [sys.executable, "-m", "server", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean_environment(),
    )
    assert ended.returncode == 1
    assert "plugin " in ended.stderr
    assert reason in ended.stderr


def test_check_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polydecode", "check", str(tmp_path / "missing.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=clean_environment())
    assert (ended.returncode, "missing.py: FileNotFoundError" in ended.stderr) == (2, True), ended.stderr
