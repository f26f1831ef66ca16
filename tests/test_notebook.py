"""The notebook of docs/, run from its first cell to its last."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.py"


@pytest.mark.slow
def test_every_cell_runs_and_says_what_the_text_promises(
    smol_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = runpy.run_path(str(NOTEBOOK))
    said = capsys.readouterr().out
    assert said.startswith(" Paris")
    assert "temperature has no meaning with num_beams" in said
    assert said.count("The capital of France is Paris.\n") == 3  # the chat, its stream, the likeliest text
    scores = [each.total for each in names["llm"].score(names["texts"])]
    assert scores == sorted(scores, reverse=True)
    assert names["similarity"](names["cat"].vector, names["kitten"].vector) > names["similarity"](
        names["cat"].vector, names["tax"].vector
    )
    names["llm"].close()
