"""The GPU benchmark runs to its end on a CPU with a tiny model; what it says there of speed means nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loadtest.engine.gpu_bench import Result, Step, main, shown
from loadtest.engine.gpu_shapes import SHAPES, build, work_of

TINY = ["--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--rows", "1", "3", "--prompt", "20", "--new", "12",
        "--prefill", "80", "--beams", "2", "2", "--peers", "static-cache"]  # fmt: skip


def test_it_checks_times_and_writes(tmp_path: Path) -> None:
    lines: list[str] = []
    assert main([*TINY, "--json", str(tmp_path / "result.json")], lines.append) == 0
    document = json.loads((tmp_path / "result.json").read_text())
    assert [check["is_passed"] for check in document["checks"]] == [True] * 3
    assert "3 of 3 rows give the same tokens, 3 the same log-probs" in document["checks"][2]["detail"]
    measured = {(result["peer"], result["name"]): result["value"] for result in document["results"]}
    assert {name for peer, name in measured if peer is None} == {
        "decode step, 1 rows", "1 rows, 20 in, 12 out", "forward alone, 1 rows",
        "decode step, 3 rows", "3 rows, 20 in, 12 out", "forward alone, 3 rows",
        "prefill of 80", "beams, 2 x 2", "sampling, 4 rows",
    }  # fmt: skip
    assert all(value > 0 for value in measured.values())
    assert ("static-cache", "3 rows, 20 in, 12 out") in measured
    assert {"date", "box", "options"} <= document.keys()
    assert any("of the limit" in line for line in lines)


def test_a_measurement_that_fails_ends_no_other() -> None:
    def broken() -> Iterator[Result]:
        yield Result("first", 1.0, "ms")
        raise RuntimeError("out of luck")

    lines: list[str] = []
    steps: list[Step] = [("broken", broken), ("sound", lambda: [Result("second", 2.0, "ms")])]
    results = shown(steps, lines.append)
    assert [result.name for result in results if result.is_failed] == ["broken"]
    assert len(results) == 3
    assert ["failed" in line for line in lines] == [False, True, False]
    assert "out of luck" in lines[1]


def test_a_share_is_of_the_limit_whatever_the_unit() -> None:
    assert Result("step", 4.0, "ms", floor=3.0).share == pytest.approx(0.75)
    assert Result("speed", 75.0, "tok/s", floor=100.0).share == pytest.approx(0.75)
    assert Result("speed", None, "tok/s", floor=100.0).share is None


def test_the_least_work_is_counted_from_the_weights() -> None:
    work = work_of(build("tiny", torch.device("cpu"), torch.bfloat16))
    layer = 48 * (48 + 2 * 16 + 48) + 3 * 48 * 80 + 2 * 48
    assert work.body_parameters == 2 * layer + 48
    assert work.head_parameters == 97 * 48
    assert work.weight_bytes == 2 * (work.body_parameters + work.head_parameters)
    assert work.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2


def test_the_real_shapes_have_their_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in AutoModelForCausalLM.from_config(SHAPES[name]()).parameters())
            for name in ("llama-3.1-8b", "qwen3-0.6b")
        }
    assert sizes == {"llama-3.1-8b": 8_030_261_248, "qwen3-0.6b": 596_049_920}
