"""The template of docs/plugin is whole: its own tests pass, and its package has an entry point for each file."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.decoding.plugin.world import EXAMPLES, examples

TEMPLATE = EXAMPLES.parent
ROOT = TEMPLATE.parents[1]


def test_its_own_tests_pass() -> None:
    """polydecode check, on each of the examples."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        str(TEMPLATE / "tests"),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout
    assert f"{len(files())} passed" in ran.stdout


def test_every_file_has_an_entry_point() -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = project["entry-points"]["polydecode.plugins"]
    assert entries == {stem: f"polydecode_examples.{stem}:PLUGIN" for stem in files()}
    assert sorted(examples().versions) == sorted(entries)
    assert set(examples().versions.values()) == {project["version"]}


def test_the_page_names_every_file() -> None:
    page = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    assert [stem for stem in files() if f"`{stem}.py`" not in page] == []


def files() -> list[str]:
    return [Path(file).stem for file in sorted(EXAMPLES.glob("[!_]*.py"))]
