"""The inner loops as they are compiled for processors that this machine need not be: instructions, and no spills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("numba")

WIDE = "fma,avx2,avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni"
PROCESSORS = {
    "znver5": (WIDE, "16", "zmm"),
    "sapphirerapids": (WIDE, "16", "zmm"),
    "znver3": ("fma,avx2", "8", "ymm"),
}
INSTRUCTIONS = {
    "FLOAT32": "vfmadd231ps",
    "BFLOAT16": "vfmadd231ps",
    "BFLOAT16_PAIRS": "vdpbf16ps",
    "INT8": "vpdpbusd",
    "INT4": "vpdpbusd",
}
OF_OLDER = {"BFLOAT16_PAIRS": "vfmadd231ps", "INT8": "vpmaddwd", "INT4": "vpmaddubsw|vpmaddwd"}


def loops(assembly: str) -> list[str]:
    """The instructions between a label and a jump back to it."""
    lines = assembly.splitlines()
    places = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line.split(" ")[0].strip())}
    labels = {line.split(":")[0]: at for at, line in enumerate(lines) if line.startswith(".LBB")}
    jumps = [(at, re.search(r"\tj\w+\t(\.LBB\w+)", line)) for at, line in enumerate(lines)]
    back = [(labels[found[1]], at) for at, found in jumps if found and labels.get(found[1], at) < at]
    assert back, places
    return ["\n".join(lines[start:end]) for start, end in back]


@pytest.fixture(scope="module", params=PROCESSORS)
def compiled(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    features, lanes, _ = PROCESSORS[request.param]
    done = subprocess.run(
        [sys.executable, "-m", "tests.decoding.kernels.assembly", request.param],
        env={**os.environ, "KERNEL_FEATURES": features, "KERNEL_LANES": lanes},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return request.param, json.loads(done.stdout)


def test_each_format_takes_the_instructions_and_the_registers_that_there_are(
    compiled: tuple[str, dict[str, str]],
) -> None:
    processor, found = compiled
    assert set(found) == set(INSTRUCTIONS)
    for form, assembly in found.items():
        wanted = INSTRUCTIONS[form] if PROCESSORS[processor][2] == "zmm" else OF_OLDER.get(form, INSTRUCTIONS[form])
        inner = "\n".join(loops(assembly))
        assert re.search(rf"\t({wanted})\t.*%{PROCESSORS[processor][2]}", inner), (processor, form)


def test_sums_stay_in_registers(compiled: tuple[str, dict[str, str]]) -> None:
    """A spill is a vector written to the stack. Between groups, whose sums become floats, there may be a few; the
    portable form of bfloat16 pairs takes more registers than older processors have.
    """
    processor, found = compiled
    for form, assembly in found.items():
        if form in OF_OLDER and PROCESSORS[processor][2] == "ymm":
            continue
        for loop in loops(assembly):
            spills = re.findall(r"\tv?mov\w+\t%[yz]mm\d+, -?\d*\(%rsp\)", loop)
            allowed = len(loop.splitlines()) // 25 if form.startswith("INT") else 0
            assert len(spills) <= allowed, (processor, form, len(spills))


def test_every_turn_asks_for_the_memory_that_follows(compiled: tuple[str, dict[str, str]]) -> None:
    processor, found = compiled
    for form, assembly in found.items():
        whole = max(loops(assembly), key=len)
        assert "prefetcht0" in whole, (processor, form)
