"""The tokenizer.json of a model folder that has none, made by transformers from the vocabulary that is there.

`python -m decoding.model.fast_tokenizer DIR` answers as `unpacking.py` does, with a directory in the user's cache: the
folder's own files by links, and a tokenizer.json among them. It is made anew when any of the small files has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from decoding.cache_home import cache_folder
from decoding.gguf.unpacking import Report, answer, digest_of, is_model_directory, publish

NAME = "tokenizer.json"
SMALL = 64 << 20  # of files up to this size the content counts, of weights the name


def with_tokenizer(folder: Path, report: Report) -> Path:
    """The folder with a tokenizer.json. Raises ValueError where none can be made."""
    folder = folder.resolve()
    directory = cache_folder(f"{folder.name[:100]}-{digest_of(_content(folder))}")
    if not is_model_directory(directory):
        report("converting the tokenizer", 0.0)
        _make(folder, directory)
    return directory


def _content(folder: Path) -> str:
    """What the conversion depends on, and where it was made from."""
    from transformers import __version__  # noqa: PLC0415 - says how it converts

    digest = hashlib.sha256(f"{folder} {__version__}".encode())
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0")
        if file.is_file() and file.suffix != ".safetensors" and file.stat().st_size <= SMALL:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _make(folder: Path, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        (made / NAME).write_text(converted(folder), encoding="utf-8")
        for file in folder.iterdir():
            os.symlink(file, made / file.name)
        publish(made, directory)


def converted(folder: Path) -> str:
    """The text of tokenizer.json. Raises ValueError."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is the answer's
        return str(_backend(folder).to_str())


def _backend(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - an answer from the cache must not pay for it

    from decoding.model.paired_tokenizer import PairedConverter  # noqa: PLC0415 - the same

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(tokenizer, "backend_tokenizer"):
            return tokenizer.backend_tokenizer
        if hasattr(tokenizer, "encoder") and (hasattr(tokenizer, "spm_files") or hasattr(tokenizer, "spm_file")):
            return PairedConverter(tokenizer).converted()
    except Exception as error:  # of any kind: the files are strangers'
        raise ValueError(f"the model lacks {NAME}, and none can be made of its vocabulary: {_first(error)}") from error
    raise ValueError(f"the model lacks {NAME}, and transformers has no fast {type(tokenizer).__name__} to make it of")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    answer(lambda report: with_tokenizer(Path(sys.argv[1]), report))
