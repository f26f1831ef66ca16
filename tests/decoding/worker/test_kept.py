"""Kept models: the second start packs nothing and gives the same bits, and no change or damage goes unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from decoding.attention.interface import Batch
from decoding.kernels.cpu import panels
from decoding.model import fused, layer_weights, loading
from decoding.model.model import Model
from decoding.worker.kept import container, identity, opening
from decoding.worker.kept.opening import open_model
from tests.decoding.model.test_fused import FUSED
from tests.decoding.tiny import CONFIGS, tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(opening, "folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(tmp_path / "model", "llama")


def saved(path: Path, name: str, seed: int = 0) -> Path:
    tiny(name, seed=seed).save_pretrained(path)
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded by way of transformers."""
    return watched(monkeypatch, loading, "load")


def watched(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    calls: list[str] = []
    original = getattr(module, name)

    def watching(*args: Any, **options: Any) -> Any:
        calls.append(str(args[0])[:200])
        return original(*args, **options)

    monkeypatch.setattr(module, name, watching)
    return calls


def opened(directory: Path, dtype: str = "float32", **options: Any) -> Model:
    said: list[str] = []
    model = open_model(
        str(directory), device="cpu", dtype=dtype, progress=lambda stage, _: said.append(stage), **options
    )
    model.said = said  # type: ignore[attr-defined]
    return model


@torch.inference_mode()
def logits(model: Model, count: int = 40) -> torch.Tensor:
    """Of one row, with every layer's states before them."""
    batch = Batch.of_one_row(np.arange(count) % model.info.vocab_size, model.attention.page_size)
    model.attention.allocate(2 + len(batch.page_tables[0]))
    hidden = model.forward(batch, tuple(range(model.info.num_layers + 1)))
    return torch.cat([*(hidden.layers[i].flatten() for i in sorted(hidden.layers)), model.head(hidden.last).flatten()])


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("how", ["float32", "bfloat16", "int8"])
def test_the_second_start_packs_and_tries_nothing_and_gives_the_same_bits(
    name: str, how: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(tmp_path / "model", name)
    options: dict[str, Any] = {"quantize": how} if how == "int8" else {"dtype": how}
    first = opened(directory, **options)
    assert len(list(folder.glob("*.kept"))) == 1
    counts = [
        watched(monkeypatch, module, called)
        for module, called in ((loading, "load"), (panels, "pack"), (layer_weights, "pack"), (fused, "fuse_layers"))
    ]
    second = opened(directory, **options)
    assert counts == [[], [], [], []]
    assert torch.equal(logits(second), logits(first))
    assert (second.info, second.weight_bytes, second.is_compiled) == (first.info, first.weight_bytes, True)


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {*FUSED}))
def test_a_model_with_more_to_it_is_not_kept(name: str, tmp_path: Path, folder: Path, loads: list[str]) -> None:
    directory = saved(tmp_path / "model", name)
    for _ in range(2):
        opened(directory)
    assert (len(loads), list(folder.glob("*"))) == (2, [])


def test_what_a_rebuilt_model_would_leave_out_is_noticed(
    directory: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loading.load

    def scaling(*args: Any, **options: Any) -> Model:
        model = plain(*args, **options)
        head = model.head
        monkeypatch.setattr(model, "head", lambda hidden: 2 * head(hidden))
        return model

    monkeypatch.setattr(loading, "load", scaling)
    opened(directory)
    assert not list(folder.glob("*"))


def test_changed_weights_are_packed_anew(directory: Path, folder: Path, loads: list[str]) -> None:
    before, stat = logits(opened(directory)), (directory / "model.safetensors").stat()
    saved(directory, "llama", seed=1)
    weights = directory / "model.safetensors"
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = logits(opened(directory))
    assert len(loads) == 2
    assert not torch.equal(before, after)
    assert torch.equal(logits(opened(directory)), after)
    assert len(loads) == 2


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_changed_configuration_is_another_model(directory: Path, folder: Path, loads: list[str], file: str) -> None:
    opened(directory)
    text = (directory / file).read_text()
    assert '"eos_token_id": 2' in text
    (directory / file).write_text(text.replace('"eos_token_id": 2', '"eos_token_id": 5'))
    assert 5 in opened(directory).info.eos_token_ids
    assert len(loads) == 2


def test_a_file_that_changes_while_it_is_loaded_is_not_kept(
    directory: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loading.load

    def racing(*args: Any, **options: Any) -> Model:
        saved(directory, "llama", seed=1)
        return plain(*args, **options)

    monkeypatch.setattr(loading, "load", racing)
    opened(directory)
    assert not list(folder.glob("*"))


@pytest.mark.parametrize("part", ["source_digest", "_machine"])
def test_other_code_or_another_machine_packs_anew(
    part: str, directory: Path, folder: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(directory)
    monkeypatch.setattr(identity, part, lambda: "other" if part == "source_digest" else ("other",))
    opened(directory)
    assert len(loads) == 2


def test_each_way_of_asking_is_kept_by_itself_and_old_ones_go(directory: Path, folder: Path, loads: list[str]) -> None:
    invariant: dict[str, Any] = {"is_batch_invariant": True}  # the same on a CPU, but another way of asking
    asked: list[dict[str, Any]] = [{}, {"quantize": "int8"}, invariant, {"quantize": "int8"}]
    for options in asked:
        opened(directory, **options)
    assert len(loads) == 3
    assert len(list(folder.glob("*.kept"))) == opening.MOST
    opened(directory)
    assert len(loads) == 4


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_its_end(data: bytes) -> bytes:
    return data[:-1]


def changed_at(place: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = int(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return change


@pytest.mark.parametrize(
    "damage",
    [truncated, without_its_end, changed_at(0), changed_at(0.01), changed_at(0.5), lambda _: b"", lambda d: d + b"x"],
)
def test_a_damaged_file_is_noticed_and_made_anew(
    damage: Callable[[bytes], bytes], directory: Path, folder: Path, loads: list[str]
) -> None:
    expected = logits(opened(directory))
    (file,) = folder.glob("*.kept")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    model = opened(directory)
    assert torch.equal(logits(model), expected)
    assert any("cannot be used" in stage for stage in model.said)  # type: ignore[attr-defined]
    assert (len(loads), file.read_bytes()) == (2, whole)


def test_numbers_that_come_out_otherwise_are_noticed(
    directory: Path, folder: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound file, whose model does not give what it gave: what its digests cannot see."""
    opened(directory)
    original = container.read

    def turned(path: Path) -> tuple[str, list[torch.Tensor]]:
        text, tensors = original(path)
        tensors[1].mul_(1.5)
        return text, tensors

    monkeypatch.setattr(container, "read", turned)
    model = opened(directory)
    assert any("gives other numbers" in stage for stage in model.said)  # type: ignore[attr-defined]
    assert len(loads) == 2


def test_where_nothing_can_be_written_a_start_goes_on(
    directory: Path, folder: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.joinpath("kept").write_text("no folder")
    expected = logits(opened(directory))
    assert torch.equal(logits(opened(directory)), expected)
    assert len(loads) == 2


def test_a_write_that_fails_leaves_nothing(directory: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    opened(directory)
    assert not list(folder.iterdir())


def test_the_second_start_imports_no_transformers(directory: Path, folder: Path) -> None:
    opened(directory)
    program = (
        "import sys, torch\nfrom pathlib import Path\nfrom decoding.worker import worker\n"
        "from decoding.worker.kept import opening\n"
        f"opening.folder = lambda: Path({str(folder)!r})\n"
        "with torch.inference_mode():\n"
        f"    opening.open_model({str(directory)!r}, device='cpu', dtype='float32', progress=lambda *_: None)\n"
        "print([name for name in ('transformers', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
