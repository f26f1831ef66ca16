"""Vectors of any width and any instructions compute the same bits: those of older processors, and of other makers'."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

from decoding.kernels.cpu.vectors import FEATURES

PORTABLE = ",".join(FEATURES & {"fma", "avx2"})


def digests(**environment: str) -> list[str]:
    command = [sys.executable, "-m", "tests.decoding.kernels.bits"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_eight_lanes_and_sixteen_with_any_instructions_give_the_same_bits() -> None:
    own = digests()
    assert len(own) == 4
    for lanes in ("8", "16"):
        assert digests(KERNEL_LANES=lanes, KERNEL_FEATURES=PORTABLE) == own, lanes
