"""Where settings come from, that nothing unknown passes, and that the generated file is current."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.__main__ import main
from server.settings.limits import Limits
from server.settings.sections import SECTIONS, LimitSettings
from server.settings.settings import LoadedSettings, Settings, SettingsError, load
from server.settings.text import default_toml, effective_toml

CONFIGS = Path(__file__).parents[2] / "configs"


def configured(path: Path, text: str, *flags: str, **environment: str) -> LoadedSettings:
    file = path / "c.toml"
    file.write_text(text)
    return load(["--config", str(file), *flags], environment)


def test_flags_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    text = "port = 1\nmax_queue = 1\nmax_rows = 1\n"
    loaded = configured(tmp_path, text, "--port", "3", POLYDECODE_PORT="2", POLYDECODE_MAX_QUEUE="2")
    settings, origins = loaded.settings, loaded.origins
    assert (settings.port, settings.max_queue, settings.max_rows, settings.threads) == (3, 2, 1, 0)
    names = ("port", "max_queue", "max_rows", "threads")
    assert [origins[name] for name in names] == ["flag", "environment", "file", "default"]


@pytest.mark.parametrize("names", ["--served-model-name a b", "--served-model-name a --served-model-name b"])
def test_a_repeatable_flag_may_be_given_once_with_all_its_values(names: str) -> None:
    settings = load([*names.split(), "--api-key", "k", "--port", "3"], {}).settings
    assert (settings.served_model_name, settings.api_keys, settings.port) == (("a", "b"), (b"k",), 3)


def test_models_beside_the_main_one_have_names(tmp_path: Path) -> None:
    flags = ["--draft-model", "d", "--also", "old=/a=b", "--also", "new.2=org/tuned"]
    assert load(flags, {}).settings.beside == {"draft": "d", "old": "/a=b", "new.2": "org/tuned"}
    assert configured(tmp_path, 'also = ["x=m,n"]').settings.beside == {"x": "m,n"}
    assert load([], {}).settings.beside == {}


@pytest.mark.parametrize("also", ["dir", "=dir", "x=", "a b=dir", "main=dir", "draft=dir", "x=a,x=b"])
def test_a_name_that_no_model_can_have_is_refused(also: str) -> None:
    with pytest.raises(SettingsError, match=r"^also \(flag\): "):
        load(["--also", also], {})


def test_a_second_value_of_any_other_flag_is_refused() -> None:
    with pytest.raises(SystemExit):
        load(["--port", "3", "4"], {})


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("port = 77\n")
    assert load([], {"POLYDECODE_CONFIG": str(file)}).settings.port == 77


@pytest.mark.parametrize(
    "text", ["prot = 1", "config = 'x'", "[model]\nname = 'x'", "= 1", "port = 'x'", "port = 70000"]
)
def test_a_file_with_anything_unknown_or_wrong_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError):
        configured(tmp_path, text)


def test_an_unknown_variable_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="POLYDECODE_PROT"):
        load([], {"POLYDECODE_PROT": "1"})


def test_what_kubernetes_says_of_a_service_of_our_name_is_no_setting() -> None:
    address = "10.0.0.7"
    links = {
        "POLYDECODE_SERVICE_HOST": address,
        "POLYDECODE_SERVICE_PORT": "80",
        "POLYDECODE_SERVICE_PORT_HTTP": "80",
        "POLYDECODE_PORT": f"tcp://{address}:80",
        "POLYDECODE_PORT_80_TCP": f"tcp://{address}:80",
        "POLYDECODE_PORT_80_TCP_ADDR": address,
    }
    assert load([], {**links, "POLYDECODE_MAX_QUEUE": "7"}) == load([], {"POLYDECODE_MAX_QUEUE": "7"})


def test_an_unknown_flag_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        load(["--prot", "1"], {})
    assert ending.value.code == 2
    assert "--prot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize", "int8", "--device", "cuda"], "quantize = int8 is for the CPU"),
        (["--quantize", "int8", "--dtype", "bfloat16"], "quantize = int8 computes in float32"),
        (["--quantize", "int3"], r"quantize \(flag\)"),
        (["--quantize", "int4", "--device", "cuda", "--dtype", "float32"], "quantize = int4 computes in bfloat16"),
        (["--quantize", "int4", "--dtype", "float16"], "quantize = int4 computes in float32 or bfloat16"),
        (["--quantize", "fp8", "--device", "cpu"], "quantize = fp8 is for a GPU"),
        (["--quantize", "fp8", "--dtype", "float16"], "quantize = fp8 computes in bfloat16"),
        (["--quantize", "fp8", "--batch-invariant"], "quantize = fp8 cannot be batch invariant"),
        (["--kv-memory", "nan"], "kv_memory"),
        (["--stall-seconds", "50"], "stall_kill_seconds"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(flags: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(flags, {})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batch_invariance_is_accepted_on_every_device(device: str) -> None:
    assert load(["--batch-invariant", "--device", device], {}).settings.batch_invariant


def test_repeated_flags_make_a_list() -> None:
    loaded = load(["--served-model-name", "a", "--served-model-name", "b", "--api-key", "k1", "--api-key", "ké"], {})
    assert loaded.settings.served_model_name == ("a", "b")
    assert loaded.settings.api_keys == (b"k1", "ké".encode())


def test_keys_show_in_no_error_and_no_listing() -> None:
    loaded = load(["--api-key", "hunter2"], {})
    assert "hunter2" not in effective_toml(loaded) + repr(loaded)
    with pytest.raises(SettingsError) as refusal:
        load(["--port", "x"], {"POLYDECODE_API_KEY": "hunter2"})
    assert "hunter2" not in str(refusal.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load([], {}).settings.port = 1


def test_every_setting_has_a_section_and_a_description() -> None:
    listed = [name for section in SECTIONS for name in section.model_fields]
    assert sorted(listed) == sorted(Settings.model_fields)
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_limit_of_a_request_is_a_setting() -> None:
    assert load([], {}).settings.section(Limits) == Limits()
    flags = [f"--{name.replace('_', '-')}=7" for name in LimitSettings.model_fields]
    limits = load([*flags, "--max-body-bytes=7777", "--allow-priority"], {}).settings.section(Limits)
    others = {name for name in Limits.model_fields if getattr(limits, name) != 7}
    assert others == {"max_body_bytes", "allow_priority"}
    assert limits.allow_priority
    assert limits.max_body_bytes == 7777


def test_the_default_file_is_current_and_says_nothing_but_defaults() -> None:
    text = (CONFIGS / "default.toml").read_text()
    assert text == default_toml(), "run: python -m server default-config > configs/default.toml"
    assert load(["--config", str(CONFIGS / "default.toml")], {}).settings == load([], {}).settings


@pytest.mark.parametrize("name", ["cpu.toml", "h100.toml"])
def test_the_shipped_files_are_valid(name: str) -> None:
    load(["--config", str(CONFIGS / name)], {})


def test_the_config_command_prints_values_and_origins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYDECODE_PORT", "81")
    assert main(["config", "--max-queue", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("port ", "max_queue "))] == [
        ["port", "=", "81", "#", "environment"],
        ["max_queue", "=", "64", "#", "flag"],
    ]


def test_bad_settings_end_the_command_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "x"]) == 2
    assert "port (flag)" in capsys.readouterr().err


def test_a_file_of_settings_is_a_regular_one_of_moderate_size(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read /dev/zero: not a regular file"):
        load(["--config", "/dev/zero"], {})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="not a regular file"):
        load(["--config", str(tmp_path / "pipe")], {})
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 33)
    with pytest.raises(SettingsError, match="larger than 4 MiB"):
        load(["--config", str(tmp_path / "large")], {})
    (tmp_path / "nested").write_text("a = " + "[" * 100_000)
    with pytest.raises(SettingsError, match="nested too deeply"):
        load(["--config", str(tmp_path / "nested")], {})
