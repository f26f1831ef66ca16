"""The Dockerfile without a container engine: its rules by parsing, its steps by running them in a directory of our own.

The image's folders (/venv, /app, /cache, /tmp) become folders of a temporary one; COPY copies from the repository, RUN
runs, and ENTRYPOINT, CMD and HEALTHCHECK are executed with the image's environment.

Of the packages that the locks pin, and of no others, those that these tests run with are linked in before pip comes,
which installs the rest: that an index has them, `make install` has shown.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.running_server import RunningServer, clean_environment, free_port, managed

ROOT = Path(__file__).parent.parent
IMAGE_FOLDERS = ("venv", "app", "cache", "tmp")
SETTINGS_OF_THE_IMAGE_BUILD = ("PIP_NO_CACHE_DIR",)  # here the packages may come from pip's cache
OURS = {"NUMBA_OPT": "0"}  # kernels that are not optimized compile in a third of the time; numba keeps the two apart


@dataclass(frozen=True, slots=True)
class Step:
    instruction: str
    argument: str


def _steps(text: str) -> list[Step]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def _stages(steps: list[Step]) -> list[list[Step]]:
    starts = [index for index, step in enumerate(steps) if step.instruction == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


STEPS = _steps((ROOT / "Dockerfile").read_text())
BUILD, FINAL = _stages(STEPS)


def _only(stage: list[Step], instruction: str) -> str:
    (step,) = (step for step in stage if step.instruction == instruction)
    return step.argument


def _exec_form(argument: str) -> list[str]:
    """A JSON array: no shell stands between the engine's signals and the program."""
    words = json.loads(argument)
    assert isinstance(words, list)
    return [str(word) for word in words]


def _environment(stage: list[Step]) -> dict[str, str]:
    pairs = (pair for step in stage if step.instruction == "ENV" for pair in shlex.split(step.argument))
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    user, group = _only(FINAL, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_signals_reach_the_server_itself() -> None:
    assert _exec_form(_only(FINAL, "ENTRYPOINT")) == ["polydecode"]
    assert _exec_form(_only(FINAL, "CMD")) == ["serve"]


def test_the_final_stage_builds_nothing_and_has_a_compiler_for_gpus_alone() -> None:
    compiler, user = (step.argument for step in FINAL if step.instruction == "RUN")
    assert compiler.startswith('if [ -z "$TORCH_INDEX" ]; then')
    assert "gcc libc6-dev" in compiler
    assert user.startswith("useradd ")
    assert "AS" in BUILD[0].argument


def test_the_gpu_is_the_default_and_cpu_an_argument() -> None:
    assert _only(BUILD, "ARG") == 'TORCH_INDEX=""'
    assert "${TORCH_INDEX:+--extra-index-url" in next(
        s.argument for s in BUILD if s.instruction == "RUN" and "pip" in s.argument
    )


def test_everything_that_is_copied_is_let_through_by_dockerignore() -> None:
    copied = [name for step in BUILD if step.instruction == "COPY" for name in shlex.split(step.argument)[:-1]]
    assert copied
    assert not [name for name in copied if _is_ignored(name) or not (ROOT / name).exists()]


def test_nothing_else_reaches_the_build() -> None:
    assert all(
        map(_is_ignored, (".git", ".venv", "tests", "shared", "server/__pycache__", "decoding/logits/__pycache__"))
    )


def _is_ignored(name: str) -> bool:
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").replace("**/", "*/")
        if fnmatch.fnmatch(name, pattern):
            ignored = not line.startswith("!")
    return ignored


@dataclass(frozen=True, slots=True)
class Image:
    """The image's folders under `root`. `built` lists its files after the build."""

    root: Path
    environment: dict[str, str]
    built: frozenset[Path]

    def inside(self, text: str) -> str:
        return _inside(self.root, text)

    @property
    def files(self) -> frozenset[Path]:
        folders = (self.root / name for name in IMAGE_FOLDERS if name != "tmp")
        return frozenset(path for folder in folders for path in folder.rglob("*"))

    def health(self, port: int) -> int:
        """What HEALTHCHECK's command exits with."""
        words = _exec_form(_only(FINAL, "HEALTHCHECK").split(" CMD ", 1)[1])
        program = self.root / "venv/bin" / words[0]
        environment = self.environment | {"POLYDECODE_PORT": str(port)}
        done = subprocess.run([program, *words[1:]], env=environment, capture_output=True, timeout=30, check=False)
        return done.returncode


def _inside(root: Path, text: str) -> str:
    """Absolute paths of the image, as paths under `root`."""
    return re.sub(rf"(?<![\w./-])/({'|'.join(IMAGE_FOLDERS)})(?=[/:\s\"]|$)", rf"{root}/\1", text)


def _stage_environment(root: Path, stage: list[Step]) -> dict[str, str]:
    base = clean_environment()
    own = {k: _inside(root, v).replace("$PATH", base["PATH"]) for k, v in _environment(stage).items()}
    return {k: v for k, v in (base | own | OURS).items() if k not in SETTINGS_OF_THE_IMAGE_BUILD}


def _copy(root: Path, argument: str) -> None:
    *names, target = shlex.split(argument)
    for name in names:
        destination = root / "app" / (name if target == "./" else target)
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, destination)


def _link_packages(venv: Path) -> None:
    """Those that are installed here in the pinned version."""
    target = Path(sysconfig.get_path("platlib", vars={"base": str(venv), "platbase": str(venv)}))
    for lock in ("requirements.lock", "requirements-embedded.lock"):
        for pin in map(Requirement, (ROOT / lock).read_text().splitlines()):
            with suppress(metadata.PackageNotFoundError):
                package = metadata.distribution(pin.name)
                if pin.specifier.contains(package.version):
                    _link(package, target)


def _link(package: metadata.Distribution, target: Path) -> None:
    """Without its programs, which name another Python."""
    for file in package.files or ():
        source = Path(str(package.locate_file(file)))
        if ".." not in file.parts and source.exists():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target / file)
            except OSError:  # on another file system
                shutil.copy2(source, target / file)


def _build(root: Path) -> None:
    """The build stage. Bytecode is left out (pip wants a 0 for that): it would double the time."""
    environment = _stage_environment(root, BUILD) | {"PIP_NO_COMPILE": "0", "TORCH_INDEX": ""}
    environment["PATH"] = f"{root}/venv/bin:{root}/base:{os.environ['PATH']}"
    (root / "base").mkdir()
    (root / "base/python").symlink_to(Path(sys.base_prefix) / "bin/python3")
    for step in BUILD:
        if step.instruction == "COPY":
            _copy(root, step.argument)
            if "requirements.lock" in step.argument:
                _link_packages(root / "venv")
        elif step.instruction == "RUN":
            command = ["sh", "-ec", _inside(root, step.argument)]
            done = subprocess.run(
                command, cwd=root / "app", env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{step.argument}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    root = tmp_path_factory.mktemp("image")
    for name in IMAGE_FOLDERS:
        (root / name).mkdir()
    _build(root)
    shutil.rmtree(root / "app")  # the final stage takes /venv and /cache, and nothing else
    (root / "app").mkdir()
    copied = {step.argument for step in FINAL if step.instruction == "COPY"}
    assert copied == {"--from=build /venv /venv", "--from=build /cache /cache"}
    image = Image(root, _stage_environment(root, FINAL), frozenset())
    yield Image(root, image.environment, image.files)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[RunningServer]:
    port = free_port()
    program, *flags = _exec_form(_only(FINAL, "ENTRYPOINT")) + _exec_form(_only(FINAL, "CMD"))
    command = [str(image.root / "venv/bin" / program), *flags]
    environment = image.environment | {"POLYDECODE_HOST": "127.0.0.1", "POLYDECODE_PORT": str(port)}
    with managed(command, port, cwd=image.root / "tmp", environment=environment) as server:
        yield server


@pytest.mark.slow
def test_the_build_leaves_a_program_and_a_converted_model(image: Image) -> None:
    assert image.root / "venv/bin/polydecode" in image.built
    assert [path.suffix for path in image.built if path.name == "model.safetensors"] == [".safetensors"]


@pytest.mark.slow
def test_without_a_server_the_image_is_unhealthy(image: Image) -> None:
    assert image.health(free_port()) != 0


@pytest.mark.slow
def test_the_container_is_healthy_and_serves_the_embedded_model(image: Image, container: RunningServer) -> None:
    """Ready, healthy by its own check, and gone with 0 at SIGTERM (which `managed` sees to)."""
    assert container.status_of("/v1/models") == 200
    assert image.health(container.port) == 0


@pytest.mark.slow
def test_a_running_container_writes_nothing_outside_tmp(image: Image, container: RunningServer) -> None:
    """So its file system can be read-only. The tests' user may write to the cache and keeps the model there, as the
    image's user cannot.
    """
    assert container.status_of("/ready") == 200
    kept = image.root / "cache/polydecode/models"
    assert {path for path in image.files if kept not in (path, path.parent)} == image.built
    assert not _only(FINAL, "USER").endswith(("root", " 0"))
