"""Plugins are found by file, module and entry point; what is wrong with one is said with its name."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from decoding.contract.plugin_loading import GROUP, load_plugins
from decoding.contract.plugins import PluginError
from tests.decoding.plugin.world import EXAMPLES

LOOKAHEAD = str(EXAMPLES / "lookahead.py")
SOURCE = Path(LOOKAHEAD).read_text(encoding="utf-8")


def loaded_from(path: Path, source: str) -> None:
    file = path / "mine.py"
    file.write_text(source)
    load_plugins([str(file)])


def test_a_file_is_loaded_once_however_often_it_is_named() -> None:
    plugins = load_plugins([LOOKAHEAD, LOOKAHEAD])
    assert plugins.versions == {"lookahead": "1.0"}
    assert [strategy.name for strategy in plugins.strategies] == ["lookahead"]


def test_a_module_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    assert load_plugins(["polydecode_examples.power"]).versions == {"power": "1.0"}


def test_an_entry_point_is_found_by_its_name_and_no_other_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES.parent))
    entries = [
        metadata.EntryPoint("mine", "polydecode_examples.extras:PLUGIN", GROUP),
        metadata.EntryPoint("other", "no_such_module:PLUGIN", GROUP),
    ]
    chosen = lambda group, name: [e for e in entries if (e.group, e.name) == (group, name)]  # noqa: E731
    monkeypatch.setattr(metadata, "entry_points", chosen)
    plugins = load_plugins(["mine"])
    assert list(plugins.steps) == ["top_a"]
    assert list(plugins.judges) == ["shortest"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("from decoding.plugin import", "import no_such_module\nfrom decoding.plugin import"), "No module named"),
        (("PLUGIN = Plugin", "OTHER = Plugin"), "it has no PLUGIN"),
        (("PLUGIN = Plugin(", "PLUGIN = print("), "TypeError"),
        (('"lookahead", "1.0"', '"lookahead", ""'), "it has no version"),
        (('Plugin("lookahead"', 'Plugin("Look Ahead"'), "is no name"),
        (('Strategy("lookahead"', 'Strategy("other"'), "have another NAME"),
        (('when=("lookahead",), ', ""), "nothing asks for lookahead"),
        ((', Says("How many next tokens are tried.")', ""), "field k of Lookahead says nothing"),
    ],
)
def test_what_is_wrong_is_said_with_the_plugin_s_name(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    assert change[0] in SOURCE
    with pytest.raises(PluginError, match=r"plugin .*(mine\.py|lookahead|Look Ahead)") as error:
        loaded_from(tmp_path, SOURCE.replace(*change))
    assert reason in str(error.value)


@pytest.mark.parametrize("name", ["beam", "mean"])
def test_a_name_of_ours_is_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(PluginError, match=f"{name} is a name of polydecode"):
        loaded_from(tmp_path, SOURCE.replace('"lookahead"', f'"{name}"'))


def test_a_name_of_another_plugin_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.replace('Plugin("lookahead"', 'Plugin("mine"'))
    with pytest.raises(PluginError, match="lookahead is a name of plugin lookahead"):
        load_plugins([LOOKAHEAD, str(file)])


def test_two_plugins_have_two_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    with pytest.raises(PluginError, match="another one has that name"):
        load_plugins([LOOKAHEAD, str(file)])


def test_the_examples_load_without_torch_and_one_that_brings_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE + "import torch\n")
    files = [str(file) for file in EXAMPLES.glob("[!_]*.py")]
    program = (
        "import sys\nfrom decoding.contract.plugin_loading import load_plugins\n"
        f"load_plugins({files}, refused=('torch',))\nprint('torch' in sys.modules)\n"
        f"load_plugins([{str(tmp_path / 'mine.py')!r}], refused=('torch',))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "False\n"
    assert "mine.py: it imports torch where the server reads it" in ran.stderr
