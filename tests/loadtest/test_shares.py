"""The share of the machine that is used, on a tiny model: the table's shape, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numba")

from decoding.kernels.cpu.tile import Format
from loadtest.engine.rates import peak
from loadtest.engine.shares import FORMS, Products, main
from tests.decoding.tiny import WHOLE_GROUPS, tiny


def test_a_line_for_each_format_and_number_of_rows(tmp_path: Path) -> None:
    tiny("llama", **WHOLE_GROUPS).save_pretrained(tmp_path)
    said: list[str] = []
    assert main([str(tmp_path), "--rows", "1", "3"], said.append) == 0
    lines = said[-1].splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [[f"| `{form}`", rows] for form in FORMS for rows in ("1", "3")]


def test_the_products_are_those_of_the_model() -> None:
    causal_lm = tiny("llama", tie_word_embeddings=True)
    wanted = sum(2 * weight.numel() for weight in causal_lm.parameters() if weight.dim() == 2)
    assert Products.of(causal_lm.config, Format.FLOAT32).operations == wanted


def test_two_threads_do_more_than_none() -> None:
    assert all(peak(form, 2) > 0 for form in Format)
