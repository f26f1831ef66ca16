"""Environments for clients whose pins conflict with ours, or that weigh too much for everybody's: made on demand.

POLYDECODE_CLIENT_VENVS=1 makes them for one run of the tests, a folder's path makes them there and keeps them. Each
sees our own packages behind its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.running_server import clean_environment

SWITCH = "POLYDECODE_CLIENT_VENVS"
HERE = Path(__file__).parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def run_client(name: str, requirements: Sequence[str], script: str, *arguments: str) -> str:
    """What the script prints, run in the environment of that name; skips the test where none is wanted."""
    asked = os.environ.get(SWITCH)
    if not asked:
        pytest.skip(f"needs an environment of its own: {SWITCH}=1, or a folder to keep it in")
    with tempfile.TemporaryDirectory() as scratch:
        python = _python(Path(scratch if asked == "1" else asked) / name, requirements)
        command = [str(python), str(HERE / script), *arguments]
        environment = {**clean_environment(), **OFFLINE}
        done = subprocess.run(
            command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _python(folder: Path, requirements: Sequence[str]) -> Path:
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        Path(paths["purelib"], "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python
