"""That the map of the house is true: every folder is on it, and all that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("polydecode", "server", "decoding", "loadtest")
MAX_FILES = 20  # more and a folder's listing explains nothing
FOLDERS = sorted(
    {path.parent.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
)


def test_every_folder_is_on_the_map() -> None:
    missing = [folder for folder in FOLDERS if f"`{folder}/`" not in MAP]
    assert not missing


def test_all_that_the_map_names_exists() -> None:
    named = re.findall(r"`((?:polydecode|server|decoding|loadtest|tests|configs|docs)/[\w./]*)`", MAP)
    assert len(named) > len(FOLDERS)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_no_more_files_than_a_listing_can_explain(folder: str) -> None:
    files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_FILES
