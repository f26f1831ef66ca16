"""What --model may be, and what is found out before a worker is started."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from server.model_files import ModelError, check, default_name, prepare, resolve
from tests.server.world import model_directory, safetensors_bytes, until


def ignore(_: str, __: float) -> None:
    pass


async def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    assert await resolve(str(directory), ignore, may_download=False) == directory


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_that_lacks_a_file_is_refused_by_the_files_name(tmp_path: Path, missing: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / missing).unlink()
    with pytest.raises(ModelError, match=missing.removeprefix("model.")):
        check(str(directory), may_download=False)


@pytest.mark.parametrize("damage", [safetensors_bytes()[:-1], safetensors_bytes()[:20], b"", b"\xff" * 100])
def test_weights_that_broke_off_are_refused(tmp_path: Path, damage: bytes) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match=r"model.safetensors is damaged or incomplete"):
        check(str(directory), may_download=False)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    index = '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors"):
        check(str(directory), may_download=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check(str(directory), may_download=False)


def test_a_hub_id_needs_leave_to_be_downloaded() -> None:
    with pytest.raises(ModelError, match="--allow-download"):
        check("some/model", may_download=False)
    check("some/model", may_download=True)


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "../x/y", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_id(model: str) -> None:
    with pytest.raises(ModelError, match="is not a directory"):
        check(model, may_download=True)


def test_a_model_without_a_name_is_called_by_its_directory_or_id(tmp_path: Path) -> None:
    assert default_name(str(model_directory(tmp_path / "m"))) == "m"
    assert default_name("some/model") == "some/model"
    assert default_name("") == "SmolLM2-135M-Instruct"


def script(*lines: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", "\n".join(["import json, sys, time", *lines]))


async def test_the_steps_of_a_preparation_are_reported_and_chatter_is_not(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    steps: list[tuple[str, float]] = []
    command = script(
        'print(\'{"stage": "converting", "fraction": 0.5}\', flush=True)',
        "print('a library says hello')",
        f"print(json.dumps({{'directory': {str(directory)!r}}}))",
    )
    assert await prepare(command, lambda stage, fraction: steps.append((stage, fraction))) == directory
    assert steps == [("converting", 0.5)]


async def test_a_failed_preparation_is_told_in_its_own_last_words() -> None:
    with pytest.raises(ModelError, match=r"^the package is not installed$"):
        await prepare(script("sys.exit('warning\\npolydecode: the package is not installed')"), ignore)


async def test_a_preparation_that_names_no_directory_has_failed() -> None:
    with pytest.raises(ModelError, match="could not be prepared"):
        await prepare(script("pass"), ignore)


async def test_a_cancelled_preparation_leaves_no_process(tmp_path: Path) -> None:
    alive, before = tmp_path / "alive", set(psutil.Process().children())
    preparing = asyncio.create_task(prepare(script(f"open({str(alive)!r}, 'w')", "time.sleep(600)"), ignore))
    await until(alive.exists)
    (process,) = set(psutil.Process().children()) - before
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert not process.is_running()
