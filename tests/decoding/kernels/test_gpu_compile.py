"""Every kernel compiles for a GPU, once for all ticks: the interpreter takes much that the compiler does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

MOST_SHARED = 227 << 10  # bytes that a program on an H100 may have

Kernels = dict[str, list[dict[str, Any]]]


def compiled(tmp_path: Path, *names: str) -> Kernels:
    """By name, what was compiled of it."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.decoding.kernels.gpu_compile", *names]
    done = subprocess.run(
        command, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Kernels = defaultdict(list)
    for line in map(json.loads, done.stdout.splitlines()):
        found[line["kernel"]].append(line)
    assert all(line["shared"] <= MOST_SHARED for lines in found.values() for line in lines)
    return found


def test_attention_compiles_once_for_decode_and_once_for_prefill(tmp_path: Path) -> None:
    """Split by keys and not; whatever the numbers of rows and pages are, and wherever a batch's tables lie."""
    found = compiled(tmp_path, "llama")
    assert {name: len(lines) for name, lines in found.items()} == {"scatter": 1, "attend": 4, "combine": 2}
    assert sorted(line["product"] for line in found["attend"]) == ["mma", "mma", "wgmma", "wgmma"]
    assert all(line["copies"] for line in found["attend"]), "keys are not loaded ahead"


def test_windows_soft_caps_and_sinks_compile(tmp_path: Path) -> None:
    assert len(compiled(tmp_path, "variants")["attend"]) == 2


def test_scores_compile_once_for_each_vocabulary(tmp_path: Path) -> None:
    """And once more where very many of the best are asked for."""
    found = compiled(tmp_path, "scores")
    assert {name: len(lines) for name, lines in found.items()} == {"scan": 1, "settle": 3}
