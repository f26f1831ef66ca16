"""Where compiled kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")


def run(home: Path) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", "from tests.decoding.kernels.tiny_kernel import TINY; print(TINY.address != 0)"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_are_kept_in_the_users_cache_under_the_sources_digest(tmp_path: Path) -> None:
    assert run(tmp_path) == "True"
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert [path.relative_to(tmp_path).parts[:2] for path in kept] == [("polydecode", next(iter(kept)).parts[-3])]
    assert next(iter(kept)).parts[-3].startswith("kernels-")
    assert run(tmp_path) == "True"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == kept, "compiled anew"


def test_where_nothing_can_be_written_kernels_compile_all_the_same(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    assert run(blocked) == "True"
