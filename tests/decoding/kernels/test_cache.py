"""Kernels found in the cache compute what they did in the process that compiled them, whatever others are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

MODULE = """
import ctypes, sys
import numpy as np
from numba import carray
from decoding.kernels.cpu.compiled import inner, kernel, record

CELL = record(x="count", out="count")

def make(factor):
    @inner
    def walk(x, n):
STEPS
        return x
    return walk

_by_three, _by_five = make(3), make(5)

@kernel(CELL)
def three(pointer):
    a = carray(pointer, 1)[0]
    a.out = _by_three(a.x, 1) + _by_three(a.x, 2)

@kernel(CELL)
def five(pointer):
    a = carray(pointer, 1)[0]
    a.out = _by_five(a.x, 1) + _by_five(a.x, 2)

for name in sys.argv[1:]:
    cell = np.zeros(1, CELL)
    cell["x"] = 7
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(globals()[name].address)(cell.ctypes.data)
    print(int(cell["out"][0]))
"""


STEPS = "\n".join(
    f"        x = (x ^ (x >> 3)) * factor + n % (x * x + {i})" for i in range(2, 100)
)  # not to be inlined


FACTORY = """
import ctypes, sys
import numpy as np
from decoding.kernels.cpu.compiled import inner, kernel_of_counts
from decoding.kernels.cpu.vectors import load_one, store_one

def make(factor):
    @inner
    def times(x):
        return x * factor

    def multiply(source, target):
        store_one(target, times(load_one(source)))

    return multiply

KERNELS = {name: kernel_of_counts(2, name)(make(factor)) for name, factor in (("three", 3), ("five", 5))}

for name in sys.argv[1:]:
    cell = np.array([7, 0], np.float32)
    address = cell.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(KERNELS[name].address)(address, address + 4)
    print(int(cell[1]))
"""


def outputs(module: Path, *names: str) -> list[int]:
    root = Path(__file__).parents[3]
    environment = os.environ | {"XDG_CACHE_HOME": str(module.parent / "cache"), "PYTHONPATH": str(root)}
    found = subprocess.run(
        [sys.executable, str(module), *names], env=environment, capture_output=True, text=True, check=True
    )
    return [int(line) for line in found.stdout.split()]


def test_kernels_that_two_processes_compiled_do_not_run_each_others_code(tmp_path: Path) -> None:
    module = tmp_path / "pair.py"
    module.write_text(MODULE.replace("STEPS", STEPS), encoding="utf-8")
    (three,) = outputs(module, "three")
    (five,) = outputs(module, "five")
    assert three != five
    assert outputs(module, "three", "five") == [three, five]
    assert outputs(module, "five", "three") == [five, three]


def test_what_a_factory_makes_is_compiled_once_each_and_not_mistaken_for_another(tmp_path: Path) -> None:
    module = tmp_path / "factory.py"
    module.write_text(FACTORY, encoding="utf-8")
    assert outputs(module, "three") == [21]
    assert outputs(module, "five", "three") == [35, 21]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    assert len(kept) == 2
    assert outputs(module, "three", "five") == [21, 35]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == kept, "compiled anew"


def test_every_kernel_has_a_name_of_its_own() -> None:
    from decoding.kernels.cpu.all_kernels import KERNELS  # noqa: PLC0415

    names = [(each._function.__module__, each._function.__qualname__) for each in KERNELS]
    assert len({*names}) == len(names)
