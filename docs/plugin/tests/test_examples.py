"""Each plugin keeps what must hold of everything that decodes in a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoding.check.__main__ import main

FILES = sorted((Path(__file__).parents[1] / "polydecode_examples").glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_passes_polydecode_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(file)])
    assert status == 0, capsys.readouterr().out
