"""Kernels of layers and products compile for every GPU that is meant, once for all numbers of rows."""

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

LEAST_SHARED = 99 << 10  # bytes that a program may have on the smallest of them


@pytest.mark.parametrize(
    ("capability", "product"), [(80, "mma.sync"), (89, "mma.sync"), (90, "wgmma.mma"), (100, "tcgen05.mma")]
)
def test_layers_and_products_compile_once_for_all_numbers_of_rows(
    capability: int, product: str, tmp_path: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.decoding.kernels.gpu_compile_layer", str(capability)]
    done = subprocess.run(
        command, env=env | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in map(json.loads, done.stdout.splitlines()):
        found[line["kernel"]].append(line)
    assert all(line["shared"] <= LEAST_SHARED for lines in found.values() for line in lines)
    # A norm with and without a sum before it, heads with and without norms; matrices split, not split and for few rows.
    counts = {"normalise": 2, "place": 2, "activate": 1, "multiply": 3 + 3 + 2, "add_spans": 3}
    counts |= {"weigh": 2, "pick": 2, "cut_nucleus": 2}  # of two vocabularies
    if capability >= 89:
        counts |= {"normalise": 4, "activate_quantised": 1, "quantise": 1}
    assert {name: len(lines) for name, lines in found.items()} == counts
    multiplied = found["multiply"][:-2]  # the last are float32's, which no tensor core multiplies exactly
    assert [line["product"] for line in multiplied].count(product) == (6 if product == "mma.sync" else 4)
    assert all(line["copies"] for line in found["multiply"]), "nothing is loaded ahead"
