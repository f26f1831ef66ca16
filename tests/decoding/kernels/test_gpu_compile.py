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

ROOT = Path(__file__).parents[3]
TRITONS = {"installed": None, "oldest": ROOT / "build" / "triton-oldest"}
MOST_SHARED = 99 << 10  # bytes that a program may have on the GPUs of capability 8.9
FEW_SPILLED, MANY_SPILLED = 16, 64  # bytes of a thread, of some hundred registers of four

Kernels = dict[str, list[dict[str, Any]]]


def compiled(tmp_path: Path, *names: str, capability: int = 90, triton: str = "installed") -> Kernels:
    """By name, what was compiled of it."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    folder = TRITONS[triton]
    if folder is not None:
        if not folder.exists():
            pytest.skip("`make oldest-triton` installs it")
        env["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.decoding.kernels.gpu_compile", str(capability), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: Kernels = defaultdict(list)
    for line in map(json.loads, done.stdout.splitlines()):
        found[line["kernel"]].append(line)
    assert all(line["shared"] <= MOST_SHARED for lines in found.values() for line in lines)
    return found


def test_attention_compiles_once_for_decode_and_once_for_prefill(tmp_path: Path) -> None:
    """Split by keys and not; whatever the numbers of rows and pages are, and wherever a batch's tables lie."""
    found = compiled(tmp_path, "llama")
    assert {name: len(lines) for name, lines in found.items()} == {
        "scatter": 1,
        "find_common": 1,
        "attend": 4,
        "combine": 1,
    }
    assert sorted(line["product"] for line in found["attend"]) == ["mma", "mma", "wgmma", "wgmma"]


@pytest.mark.parametrize("triton", TRITONS)
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_attention_fits_every_gpu_and_loads_keys_while_it_multiplies(
    capability: int, triton: str, tmp_path: Path
) -> None:
    """Windows, soft caps, sinks, biases and float32 too, which tensor cores multiply in parts of 19 bits."""
    found = compiled(tmp_path, "all", capability=capability, triton=triton)["attend"]
    assert len(found) == 9
    for line in found:
        assert line["product"] is not None, line
        assert line["buffers"] >= 2, line
        assert line["spilled"] <= FEW_SPILLED, line
    assert sum(line["is_tf32"] for line in found) == 2


@pytest.mark.parametrize("capability", [80, 90])
def test_prefill_of_the_widest_heads_nearly_fits_into_registers(capability: int, tmp_path: Path) -> None:
    (line,) = compiled(tmp_path, "wide", capability=capability)["attend"]
    assert line["buffers"] >= 2
    assert line["spilled"] <= MANY_SPILLED


def test_the_copy_of_pages_compiles_once(tmp_path: Path) -> None:
    assert len(compiled(tmp_path, "copies")["copy"]) == 1


def test_scores_compile_once_for_each_vocabulary(tmp_path: Path) -> None:
    """And once more where very many of the best are asked for."""
    found = compiled(tmp_path, "scores")
    assert {name: len(lines) for name, lines in found.items()} == {"scan": 1, "settle": 3}
