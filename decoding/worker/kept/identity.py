"""What a kept model was made of: everything that could make another one of the same directory has a part in its key.

That is the content of the model's files, our own source, the libraries that took part, the processor, and how the
model was asked for. Two keys differ where any of it does, and a file is only read under the very same key.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from decoding.contract.quantize import Quantize
from decoding.worker.kept.checksums import digest_of_files

LIBRARIES = ("torch", "transformers", "safetensors", "numpy", "numba", "llvmlite")
READ = ("*.json", "*.safetensors")  # what a model is made of


@dataclass(frozen=True, slots=True)
class Asked:
    """The model and how it is wanted."""

    directory: Path
    dtype: str
    quantize: Quantize
    is_batch_invariant: bool

    @property
    def files(self) -> list[Path]:
        return sorted(file for pattern in READ for file in self.directory.glob(pattern) if file.is_file())


@dataclass(frozen=True, slots=True)
class Identity:
    """place: of the directory, whatever it holds. key: of the content and all that had a part in the making."""

    place: str
    key: str


def identify(asked: Asked) -> Identity:
    """Raises OSError where a file cannot be read."""
    place = hashlib.sha256(str(asked.directory.resolve()).encode()).hexdigest()
    how = f"{asked.dtype} {asked.quantize} {asked.is_batch_invariant}"
    parts = (digest_of_files(asked.files), source_digest(), *_machine(), how)
    return Identity(place[:16], hashlib.sha256("\n".join(parts).encode()).hexdigest())


def stamps(asked: Asked) -> list[tuple[str, int, int, int, int]]:
    """What changes with every change to the files: no digest, but cheap."""
    found = [(file, file.stat()) for file in asked.files]
    return [(file.name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for file, at in found]


@functools.cache
def source_digest() -> str:
    """Of all of this package's code: what any of it would do now, a kept model must not have been spared."""
    root = Path(__file__).parents[2]
    whole = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        whole.update(f"{source.relative_to(root)}\n".encode() + source.read_bytes())
    return whole.hexdigest()


def _machine() -> tuple[str, ...]:
    from llvmlite import binding  # noqa: PLC0415 - only where there are kernels

    from decoding.kernels.cpu.vectors import FEATURES, LANES  # noqa: PLC0415

    processor = (platform.machine(), binding.get_host_cpu_name(), str(LANES), *sorted(FEATURES))
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return (*processor, torch.backends.cpu.get_cpu_capability(), platform.python_version(), *versions)
