"""What --model, --draft-model and --also mean: a local directory as it is, a GGUF file, the embedded model, a hub id.

Whatever takes time runs in a subprocess that prints JSON lines (`{"stage", "fraction"}`, at the end `{"directory"}`),
so the server never imports torch and answers /health meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from decoding.contract.embedded import EMBEDDED_MODEL
from server.settings.regular_file import MAX_JSON, read_regular

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
END_SECONDS = 3.0
VOCABULARIES = ("*.model", "*.spm", "vocab.json", "vocab.txt")
_MAX_SAFETENSORS_HEADER = 100 << 20
_GGUF_MAGIC = b"GGUF"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
MAX_TOKEN_ID = 4 << 20
"""No vocabulary comes near it, and `tokenizers` takes memory for every id up to the highest."""
COUNTED = re.compile(r"layer|expert|num_labels")
FEW = 1000
"""So many layers cost no time worth a check."""

Report = Callable[[str, float], None]  # (stage, fraction from 0 to 1)


class ModelError(Exception):
    """The model cannot be served; the message is for the operator."""


class PreparationStep(msgspec.Struct, frozen=True):
    """One line of a preparing subprocess."""

    stage: str = ""
    fraction: float = 0.0
    directory: str | None = None


def default_name(model: str) -> str:
    """What the API calls a model that was given no name."""
    if not model:
        return EMBEDDED_MODEL
    path = Path(model)
    if path.is_file():
        return path.stem
    return path.resolve().name if path.is_dir() else model


async def resolve(model: str, report: Report, *, may_download: bool) -> Path:
    """The model's directory, checked. Raises ModelError."""
    making = preparation(model, may_download=may_download)
    directory = Path(model) if making is None else await prepare(_command(*making), report)
    if lacks_tokenizer(directory):
        directory = await prepare(_command("decoding.model.fast_tokenizer", str(directory)), report)
    return whole(directory)


def check(model: str, *, may_download: bool) -> None:
    """What can be said at once about --model, before anything is started. Raises ModelError."""
    if preparation(model, may_download=may_download) is None:
        whole(Path(model), has_tokenizer=not lacks_tokenizer(Path(model)))


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """What goes wrong inside is the fault of the model beside the main one that has this name."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name} model: {error}") from None


@contextlib.contextmanager
def _naming_unreadable() -> Iterator[None]:
    """What the system refuses to open inside is told by its path."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"cannot read {error.filename}: {error.strerror}") from None


def _is_remote(model: str) -> bool:
    return not model or (not Path(model).exists() and _HUB_ID.fullmatch(model) is not None)


@_naming_unreadable()
def preparation(model: str, *, may_download: bool) -> tuple[str, ...] | None:
    """The module that makes the directory, with its arguments; None for one that is there. Raises ModelError."""
    if not model:
        return ("decoding.gguf.embedded",)
    if not _is_remote(model):
        packed = _gguf(Path(model))
        return None if packed is None else ("decoding.gguf.unpacking", str(packed))
    if not may_download:
        raise ModelError(f"{model} is not a directory here; to fetch it from the Hugging Face hub add --allow-download")
    return ("server.worker.download", model)


def _command(module: str, *arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", module, *arguments)


def _gguf(path: Path) -> Path | None:
    """A file, or the one GGUF file of a directory that holds no other model. Raises ModelError if it is none."""
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        if len(found) > 1:
            raise ModelError(f"{path} holds {len(found)} GGUF files: name one of them")
        path = found[0] if found else path
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if magic != _GGUF_MAGIC:
        raise ModelError(f"{path} is neither a directory nor a GGUF file")
    return path


def lacks_tokenizer(directory: Path) -> bool:
    """Whether there is a vocabulary that tokenizer.json can be made of, and no tokenizer.json."""
    if (directory / "tokenizer.json").exists() or not (directory / "config.json").exists():
        return False
    return any(any(directory.glob(pattern)) for pattern in VOCABULARIES)


def whole(directory: Path, *, has_tokenizer: bool = True) -> Path:
    """The directory, nothing of whose model is missing or cut off. Raises ModelError."""
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory")
    for name in ("config.json", *(["tokenizer.json"] if has_tokenizer else [])):
        _check_json(directory / name)
    shards = _shards(directory)
    shapes = [shape for shard in shards for shape in _shapes(shard)]
    _check_counts(read_object(directory / "config.json") or {}, shapes)
    return directory


def _check_json(path: Path) -> None:
    found = read_object(path)
    if found is None:
        _refuse_adapter(path.parent)
        raise ModelError(f"the model lacks {path.name}")
    if path.name == "tokenizer.json":
        _check_ids(found)


@_naming_unreadable()
def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file. Raises ModelError."""
    try:
        value = json.loads(read_regular(path, MAX_JSON))
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    except RecursionError:
        raise ModelError(f"the model's {path.name} is nested too deeply") from None
    if not isinstance(value, dict):
        raise ModelError(f"the model's {path.name} cannot be read: it is no JSON object")
    return value


def _refuse_adapter(directory: Path) -> None:
    found = next((name for name in _ADAPTERS if (directory / name).exists()), None)
    if found is not None and not (directory / "config.json").exists():
        advice = "merge it into the model that it was made for (peft: merge_and_unload)"
        raise ModelError(f"{directory} holds a LoRA adapter ({found}) without its model: {advice}")


def _check_ids(tokenizer: Mapping[str, Any]) -> None:
    """`tokenizers` itself takes any id, and ends the process where the memory is too small for it."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    highest = max((each for each in ids if isinstance(each, int)), default=0)
    if highest > MAX_TOKEN_ID:
        raise ModelError(f"the model's tokenizer.json has the token id {highest}, where {MAX_TOKEN_ID} is the most")


@_naming_unreadable()
def _shards(directory: Path) -> list[Path]:
    """The weight files that transformers reads: a whole one, else those of the index. Others say nothing."""
    if (directory / _WHOLE).is_file():
        return [directory / _WHOLE]
    index = read_object(directory / _INDEX)
    if index is None:
        _refuse_others(directory)
    names = _index_names(index or {})
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelError(f"the model lacks {', '.join(missing)}")
    return [directory / name for name in names]


def _refuse_others(directory: Path) -> NoReturn:
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if not others:
        raise ModelError("the model has no *.safetensors file; other formats are not loaded")
    raise ModelError(f"the model has neither {_WHOLE} nor {_INDEX}: {others[0]} is not what its weights are read from")


def _index_names(index: Mapping[str, Any]) -> list[str]:
    weights = index.get("weight_map")
    names = set(weights.values()) if isinstance(weights, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"the model's {_INDEX} names no files")
    return sorted(names)


@_naming_unreadable()
def _shapes(path: Path) -> list[list[int]]:
    """Of the file's tensors. A download that broke off is found here, not in the worker: the header tells how long the
    file is."""
    shapes: list[list[int]] = []
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _MAX_SAFETENSORS_HEADER else {}
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in entries]
        shapes = [[int(size) for size in entry["shape"]] for entry in entries]
        is_whole = bool(ends) and path.stat().st_size == 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, struct.error):
        is_whole = False
    if not is_whole:
        raise ModelError(f"the model's {path.name} is damaged or incomplete")
    return shapes


def _check_counts(config: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """transformers makes lists as long as the number of layers before it looks at any weight."""
    most = max([FEW, len(shapes), *(size for shape in shapes for size in shape)])
    parts = [config]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif isinstance(value, int) and value > most and COUNTED.search(name):
                raise ModelError(f"the model's config.json says {name} = {value}, of which its weights hold no trace")


async def prepare(command: Sequence[str], report: Report) -> Path:
    """Runs the command and follows its lines. Raises ModelError with its last words."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        errors = asyncio.create_task(process.stderr.read())
        directory = await _follow(process.stdout, report)
        if await process.wait() != 0 or directory is None:
            raise ModelError(_last_line(await errors) or "the model could not be prepared")
        return Path(directory)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Lets it clean up its scratch files, but not for long."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _follow(lines: asyncio.StreamReader, report: Report) -> str | None:
    directory = None
    async for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # a library's print is not a step
            step = msgspec.json.decode(line, type=PreparationStep)
            directory = step.directory or directory
            if step.stage:
                report(step.stage, step.fraction)
    return directory


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("polydecode: ") if lines else ""
