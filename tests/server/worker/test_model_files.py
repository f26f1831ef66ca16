"""What --model may be, and what is found out before a worker is started."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from gguf import GGMLQuantizationType

from server.text.tokenizer import Tokenizer
from server.worker.model_files import ModelError, check, default_name, prepare, resolve
from tests.decoding.gguf.gguf_files import WORDS, sized, write
from tests.decoding.model.vocabularies import opt
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


def index_of(*names: str) -> str:
    return json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}})


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": [1]}', index_of("model-00001-of-00002.safetensors")])
def test_beside_a_whole_file_nothing_else_counts(tmp_path: Path, index: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "model.safetensors.index.json").write_text(index)
    for stray in ("optimizer.safetensors", "model-00001-of-00003.safetensors", "training_args.bin", "scheduler.pt"):
        (directory / stray).write_bytes(b"no weights")
    check(str(directory), may_download=False)


def test_beside_an_index_nothing_else_counts(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "one.safetensors")
    (directory / "optimizer.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor .*one\.safetensors is not"):
        check(str(directory), may_download=False)
    (directory / "model.safetensors.index.json").write_text(index_of("one.safetensors"))
    check(str(directory), may_download=False)


@pytest.mark.parametrize("index", ['{"weight_map": 1}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_of_no_files_is_refused(tmp_path: Path, index: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="names no files"):
        check(str(directory), may_download=False)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors"):
        check(str(directory), may_download=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        check(str(directory), may_download=False)


NESTED = 100_000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path: Path, name: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / name).write_text('{"a":' * NESTED + "1" + "}" * NESTED)
    with pytest.raises(ModelError, match=rf"{name} is nested too deeply"):
        check(str(directory), may_download=False)


def test_weights_whose_header_is_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    header = b'{"a":' * NESTED + b"1" + b"}" * NESTED
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        check(str(directory), may_download=False)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"text_config": {"n_layer": 10**9}}, "n_layer"),
        ({"num_local_experts": 2000}, "num_local_experts"),
        ({"num_labels": 10**9}, "num_labels"),
    ],
)
def test_layers_that_no_weight_tells_of_are_refused_at_once(tmp_path: Path, config: object, field: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json says {field} = \d+"):
        check(str(directory), may_download=False)


def test_as_many_layers_as_a_model_may_have_are_taken(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "config.json").write_text('{"num_hidden_layers": 500, "num_experts": true, "vocab_size": 151936}')
    check(str(directory), may_download=False)


def test_a_token_id_beyond_all_vocabularies_is_refused(tmp_path: Path) -> None:
    """`tokenizers` would end the process."""
    directory = model_directory(tmp_path / "m")
    (directory / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 4000000000}}}')
    with pytest.raises(ModelError, match=r"tokenizer\.json has the token id 4000000000"):
        check(str(directory), may_download=False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_may_not_be_read_is_told_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """save_pretrained makes its files readable for their owner alone."""
    directory = model_directory(tmp_path / "m")
    if name.endswith("index.json"):
        (directory / "model.safetensors").unlink()
        (directory / name).write_text(index_of("one.safetensors"))
    denying(monkeypatch, directory / name)
    with pytest.raises(ModelError) as refused:
        check(str(directory), may_download=False)
    assert str(refused.value) == f"cannot read {directory / name}: Permission denied"


def test_a_folder_that_may_not_be_entered_is_told_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = model_directory(tmp_path / "m")
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(directory) + os.sep):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, **options)

    monkeypatch.setattr("os.stat", stat)
    with pytest.raises(ModelError, match=rf"cannot read {directory}/.*: Permission denied"):
        check(str(directory), may_download=False)


def denying(monkeypatch: pytest.MonkeyPatch, denied: Path) -> None:
    """root, as whom tests may run, is denied nothing."""
    open_file, open_descriptor = io.open, os.open

    def refuse(path: Any) -> None:
        if str(path) == str(denied):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        refuse(path)
        return open_file(path, *arguments, **options)

    def descriptor(path: Any, *arguments: Any, **options: Any) -> int:
        refuse(path)
        return open_descriptor(path, *arguments, **options)

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("os.open", descriptor)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ModelError, match=rf"{name}: not a regular file"):
        check(str(directory), may_download=False)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_its_model_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"holds a LoRA adapter .* without its model"):
        check(str(tmp_path), may_download=False)


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


async def test_a_gguf_file_becomes_a_directory_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "folder" / "tiny.gguf"
    file.parent.mkdir()
    write(file, sized("llama", num_hidden_layers=1), GGMLQuantizationType.Q8_0, words=WORDS)
    stages: list[str] = []
    directory = await resolve(str(file), lambda stage, _: stages.append(stage), may_download=False)
    assert directory.parent == tmp_path / "cache" / "polydecode"
    assert "dequantising the weights" in stages
    assert Tokenizer.from_directory(directory).encode("abc") != ()
    stages.clear()
    assert await resolve(str(file.parent), lambda stage, _: stages.append(stage), may_download=False) == directory
    assert not stages, "a directory that holds it alone is the same model, converted already"


async def test_a_damaged_gguf_file_ends_the_start_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ModelError, match=r"^cut\.gguf is damaged"):
        await resolve(str(tmp_path / "cut.gguf"), ignore, may_download=False)


def test_what_is_no_gguf_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"hello")
    with pytest.raises(ModelError, match="neither a directory nor a GGUF file"):
        check(str(tmp_path / "x.gguf"), may_download=False)
    (tmp_path / "y.gguf").write_bytes(b"GGUF")
    check(str(tmp_path / "y.gguf"), may_download=False)
    with pytest.raises(ModelError, match="holds 2 GGUF files"):
        check(str(tmp_path), may_download=False)


def test_a_gguf_file_is_called_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "Some-Model.Q4_K_M.gguf").write_bytes(b"GGUF")
    assert default_name(str(tmp_path / "Some-Model.Q4_K_M.gguf")) == "Some-Model.Q4_K_M"


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


async def test_a_folder_without_tokenizer_json_gets_one_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = opt(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    check(str(folder), may_download=False)
    directory = await resolve(str(folder), ignore, may_download=False)
    assert directory.is_relative_to(tmp_path / "cache")
    assert Tokenizer.from_directory(directory).encode("the dog")


async def test_a_vocabulary_that_cannot_be_read_is_the_operators_to_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = opt(tmp_path / "m")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json, and none can be made"):
        await resolve(str(folder), ignore, may_download=False)
