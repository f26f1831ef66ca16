"""What the engine itself costs a row, in calls of Python functions: they are the same on every machine."""

from __future__ import annotations

import pytest
import torch

from loadtest.engine.host_time import KINDS, calls, main


@pytest.mark.parametrize(("at", "most"), [(0, 62), (1, 62), (2, 110)])
def test_a_row_that_goes_on_costs_few_calls(at: int, most: int) -> None:
    """Of rows that only draw it were 192 once. What is added for every row of every tick must be worth it."""
    with torch.inference_mode():
        assert calls(KINDS[at], 32, 20) / 32 < most, KINDS[at].name


def test_the_command_shows_a_line_for_each_kind_and_number_of_rows() -> None:
    shown: list[str] = []
    assert main(["--rows", "4", "8", "--prompt", "9", "--ticks", "2"], shown.append) == 0
    lines = shown[0].splitlines()
    assert len(lines) == 2 + 2 * len(KINDS)
    assert lines[0].startswith("| rows that | rows |")
