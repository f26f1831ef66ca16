"""The README's examples, run as they stand there (but for the port) against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.wire.unknown import IGNORED, UNREAD_ITEMS
from tests.running_server import RunningServer, clean_environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    code: str


BLOCKS = [Block(*match) for match in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
CURLS = [block for block in BLOCKS if block.code.startswith("curl")]
CALLS = [block for block in CURLS if "-d '" in block.code]


def _run(block: Block, server: RunningServer) -> str:
    code = block.code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "bash" else [sys.executable, "-c", code]
    environment = clean_environment() | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _body(block: Block) -> dict[str, Any]:
    found = re.search(r"-d '(.*)'", block.code, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = README.split("\n\n")[1].splitlines()
    assert [line.split("#")[0].strip() for line in opening] == ["make serve", "make test"]


def test_every_block_is_run_here_or_is_docker() -> None:
    rest = [block for block in BLOCKS if block not in CURLS and block.language != "python"]
    assert [block.code.split()[0] for block in rest] == ["docker"]
    assert (len(CALLS), len(CURLS)) == (3, 4)


def test_the_completion_names_paris(smol_server: RunningServer) -> None:
    answer = json.loads(_run(CALLS[0], smol_server))
    assert (answer["object"], answer["model"]) == ("text_completion", _body(CALLS[0])["model"])
    assert "Paris" in answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 8


def test_the_chat_names_paris_and_returns_the_best_of_four(smol_server: RunningServer) -> None:
    answer = json.loads(_run(CALLS[1], smol_server))
    assert answer["object"] == "chat.completion"
    assert len(answer["choices"]) == 1
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["decoding"]["strategy"] == "best_of"


def test_the_stream_ends_with_usage_and_done(smol_server: RunningServer) -> None:
    lines = [line for line in _run(CALLS[2], smol_server).splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert "Paris" in text
    assert [c["finish_reason"] for chunk in chunks for c in chunk["choices"]][-1] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_the_sdk_example_is_five_lines_and_prints_paris(smol_server: RunningServer) -> None:
    (example,) = (block for block in BLOCKS if block.language == "python")
    assert len([line for line in example.code.splitlines() if line]) == 5
    assert "Paris" in _run(example, smol_server)


def test_both_metric_families_are_scraped(smol_server: RunningServer) -> None:
    scraped = _run(CURLS[3], smol_server)
    assert "polydecode_generated_tokens_total" in scraped
    assert "vllm:num_requests_running" in scraped


def test_every_field_without_effect_is_named_beside_the_header_that_lists_it() -> None:
    (paragraph,) = (part for part in README.split("\n\n") if "`X-Ignored-Params`" in part)
    assert [name for name in sorted(IGNORED | UNREAD_ITEMS) if f"`{name}`" not in paragraph] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:configs|tests|\.ci)/[\w./-]*)`", README))))
def test_files_that_the_readme_names_exist(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"and"}))
def test_make_targets_that_the_readme_names_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
