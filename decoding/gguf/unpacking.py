"""Where a GGUF file's model lies: its converted copy in the user's cache, made when it is first asked for.

`python -m decoding.gguf.unpacking FILE` prints one JSON line per step, `{"stage", "fraction"}`, and at the end
`{"directory"}`; once converted it answers at once, without importing numpy. It knows nothing of GGUF's inside, which is
`gguf/`'s, nor of who serves the directory.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from decoding.cache_home import cache_folder

CONVERSION = "1"  # part of the cache key: raise it when the converted files change

Report = Callable[[str, float], None]  # (stage, fraction of it)


@dataclass(frozen=True, slots=True)
class Packed:
    """A GGUF file. name and digest: of its directory; the digest names the content and the conversion's version."""

    gguf: Path
    name: str
    digest: str

    @property
    def cache_directory(self) -> Path:
        return cache_folder(f"{self.name}-{self.digest}")


def packed(path: Path) -> Packed:
    """A file of the operator's, known by its place, size and age: reading gigabytes takes too long. Raises OSError."""
    path = path.resolve()
    seen = path.stat()
    return Packed(path, path.stem[:100], digest_of(f"{path} {seen.st_size} {seen.st_mtime_ns}"))


def digest_of(content: str) -> str:
    return hashlib.sha256(f"{CONVERSION} {content}".encode()).hexdigest()[:12]


def is_model_directory(directory: Path) -> bool:
    """Directories appear whole, by a rename, so one file stands for all."""
    return (directory / "config.json").is_file()


def unpack(model: Packed, directory: Path, report: Report) -> Path:
    """The model as a Hugging Face directory, converted first if need be. Safe to call from many processes at once."""
    if not is_model_directory(directory):
        _convert(model, directory, report)
    return directory


def _convert(model: Packed, directory: Path, report: Report) -> None:
    from decoding.gguf.convert import convert  # noqa: PLC0415 - an answer from the cache must not pay for numpy

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        converted = Path(scratch) / "model"
        converted.mkdir()
        convert(model.gguf, converted, report)
        publish(converted, directory)


def publish(converted: Path, directory: Path) -> None:
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


def answer(prepare: Callable[[Report], Path]) -> None:
    """Print the steps of a preparation and its directory; exit with its error."""
    # The default action would leave hundreds of megabytes of scratch files behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        directory = prepare(_Printer())
    except (OSError, ValueError) as error:
        sys.exit(f"polydecode: {error}")
    print(json.dumps({"directory": str(directory)}), flush=True)


def main(path: Path) -> None:
    model = packed(path)
    answer(lambda report: unpack(model, model.cache_directory, report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
