"""`polydecode doctor`: what this machine has, what the engine makes of it, and why. Nothing is loaded or compiled.

It asks the code that decides, so that it cannot say otherwise than what happens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import torch

from decoding.cache_home import cache_home
from decoding.contract.quantize import Quantize
from decoding.device import has_triton, resolve_device
from decoding.dtype import choose_dtype
from decoding.gguf.embedded import ModelMissing, find_embedded
from decoding.gguf.unpacking import is_model_directory
from decoding.kernels import cpu as kernels
from decoding.model.quantize import check_machine
from decoding.worker.memory import available_memory
from decoding.worker.threads import default_threads
from polydecode.commands.flags import NoFields, fail, parse
from polydecode.opening import settings_of
from server.settings.settings import Settings, SettingsError
from server.worker.model_files import ModelError, check, read_object

GIB = 1 << 30
WIDE = ("fma", "avx2", "avx512f", "avx512vnni", "avxvnni", "avx512bf16", "amx-tile", "neon")
OPTIONAL = {
    "numba": "compiled kernels on a CPU",
    "triton": "attention on a GPU",
    "torchao": "int4 on a GPU",
    "llguidance": "forms of answers",
    "google-re2": "patterns of CoT-decoding",
    "uvloop": "a faster event loop",
    "httptools": "the load generator",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """value: what is so; why: the reason, or what would change it."""

    topic: str
    value: str
    why: str = ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("polydecode doctor", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", dest="is_json", help="print a list of objects")
    values, _, given = parse(parser, NoFields, arguments)
    try:
        found = list(findings(settings_of(given)))
    except (SettingsError, RuntimeError) as error:
        return fail(str(error), 2)
    print(json.dumps([asdict(each) for each in found], indent=1) if values.is_json else told(found))
    return 0


def told(found: Sequence[Finding]) -> str:
    width = max(len(each.topic) for each in found) + 2
    return "\n".join(
        textwrap.fill(
            f"{each.value} ({each.why})" if each.why else each.value,
            110,
            initial_indent=f"{each.topic:<{width}}",
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
        for each in found
    )


def findings(settings: Settings) -> Iterator[Finding]:
    device = resolve_device(settings.device)
    yield Finding(
        "polydecode",
        f"{_version('polydecode') or 'not installed'}, Python {platform.python_version()}, {platform.platform()}",
    )
    yield Finding("torch", f"{torch.__version__}, transformers {_version('transformers')}")
    yield _device(settings, device)
    yield from _processor()
    yield _kernels()
    yield _attention(device)
    yield _numbers(settings, device)
    yield from (_format(form, device, settings) for form in get_args(Quantize) if form != "none")
    yield _memory(device)
    yield _model(settings)
    yield from _caches()
    yield from (_package(name, purpose) for name, purpose in OPTIONAL.items())
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", str(files), "each connection takes one" if files < 4096 else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device(settings: Settings, device: torch.device) -> Finding:
    if device.type == "cuda":
        made = torch.cuda.get_device_properties(device)
        value = f"cuda: {made.name}, {made.total_memory / GIB:.0f} GiB, compute capability {made.major}.{made.minor}"
        return Finding("device", value, "as told" if settings.device == "cuda" else "auto: torch sees a GPU")
    if settings.device == "cpu":
        return Finding("device", "cpu", "as told")
    built = torch.version.cuda
    reason = "torch sees no GPU" if built else "this torch was built without CUDA"
    return Finding("device", "cpu", f"auto: {reason}")


def _processor() -> Iterator[Finding]:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", f"{allowed} of {os.cpu_count()} may be used, {default_threads()} threads by default")
    if _version("numba") is None:
        yield Finding("vectors", "unknown", "numba is not installed")
        return
    from decoding.kernels.cpu.vectors import FEATURES, LANES  # noqa: PLC0415 - needs numba

    has = ", ".join(name for name in WIDE if name in FEATURES)
    told = "as KERNEL_LANES or KERNEL_FEATURES say" if {"KERNEL_LANES", "KERNEL_FEATURES"} & os.environ.keys() else ""
    yield Finding("vectors", f"{LANES} float32 numbers wide, of what the processor has: {has or 'none of note'}", told)


def _kernels() -> Finding:
    if kernels.available():
        from decoding.kernels.cpu.compiled import cache_directory  # noqa: PLC0415 - needs numba

        where = cache_directory()
        state = f"compiled, in {where}" if where.is_dir() else "to be compiled at the first start, for a minute"
        return Finding("CPU kernels", f"used: {state}")
    if _version("numba") is None:
        return Finding("CPU kernels", "not used", "numba is not installed")
    from decoding.kernels.cpu.vectors import has_fma  # noqa: PLC0415 - needs numba

    reason = "threads of theirs take Linux" if has_fma() else "the processor does not multiply and add in one step"
    return Finding("CPU kernels", "not used", reason)


def _attention(device: torch.device) -> Finding:
    if device.type == "cuda":
        if has_triton():
            return Finding("attention", "Triton's kernels")
        return Finding("attention", "torch's, slowly", "it takes the package triton and a C compiler")
    return Finding("attention", "compiled for this processor" if kernels.available() else "torch's")


def _numbers(settings: Settings, device: torch.device) -> Finding:
    chosen = choose_dtype(settings.dtype, device, _Config(_config(settings)), settings.quantize)
    return Finding("dtype", str(chosen.numbers).removeprefix("torch."), chosen.reason)


def _format(form: Quantize, device: torch.device, settings: Settings) -> Finding:
    try:
        check_machine(form, device, "auto", is_batch_invariant=settings.batch_invariant)
    except ValueError as error:
        return Finding(f"quantize {form}", "no", str(error).removeprefix(f"quantize = {form} "))
    return Finding(f"quantize {form}", "yes")


def _memory(device: torch.device) -> Finding:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Finding("memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free", "the KV cache takes 0.9 of it")
    return Finding("memory", f"{available_memory() / GIB:.1f} GiB available", "the KV cache takes a quarter, 4 at most")


def _model(settings: Settings) -> Finding:
    if settings.model:
        try:
            check(settings.model, may_download=settings.allow_download)
        except ModelError as error:
            return Finding("model", "cannot be served", str(error))
        return Finding("model", settings.model, ", ".join(_config(settings).get("architectures") or ()))
    try:
        packed = find_embedded()
    except ModelMissing as missing:
        return Finding("model", "none", str(missing))
    state = "converted" if is_model_directory(packed.cache_directory) else "to be converted at the first start"
    return Finding("model", f"embedded {packed.name}", state)


def _caches() -> Iterator[Finding]:
    home = cache_home() / "polydecode"
    parent = next(each for each in (home, *home.parents) if each.exists())
    is_open = os.access(parent, os.W_OK)
    yield Finding("caches", str(home), "" if is_open else "cannot be written: each start compiles and converts anew")
    folders = [each for each in home.iterdir() if not each.name.startswith(".")] if home.is_dir() else []
    compiled = [each for each in folders if each.name.startswith("kernels-")]
    models = [each for each in folders if each.name != "models" and each not in compiled]
    kinds = {"compiled kernels": compiled, "packed models": [home / "models"], "converted models": models}
    for kind, held in kinds.items():
        sizes = [_size(each) for each in held]
        yield Finding(f"  {kind}", f"{sum(sizes) / (1 << 20):.0f} MiB in {_plural(len(held), 'folder')}")


def _package(name: str, purpose: str) -> Finding:
    version = _version(name)
    return Finding(name, version or "not installed", f"for {purpose}")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and not each.is_symlink())


def _config(settings: Settings) -> dict[str, Any]:
    """Of a model whose directory is there."""
    file = Path(settings.model or "/nowhere") / "config.json"
    return (read_object(file) or {}) if file.is_file() else {}


class _Config:
    """As much of transformers' as the choice of numbers asks for."""

    def __init__(self, values: dict[str, Any]) -> None:
        named = values.get("dtype") or values.get("torch_dtype")
        self.dtype = getattr(torch, named, None) if isinstance(named, str) else None
