"""From settings to an engine and what is served by it, all in this process: the server's start without a server.

The order is that of `server/startup.py` and `decoding/worker/worker.py`, whose parts it puts together.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decoding.contract.frames import Loaded, Start
from decoding.contract.plugin_loading import load_plugins
from decoding.engine.engine import Engine
from decoding.gguf.embedded import ensure_directory
from decoding.gguf.unpacking import packed, unpack
from decoding.model.fast_tokenizer import with_tokenizer
from decoding.model.model import Model
from decoding.strategies import Build, Builder
from decoding.worker.assembly import build_engine
from decoding.worker.kept.opening import open_model
from decoding.worker.threads import default_threads
from polydecode.grammar_check import OwnGrammarCheck
from polydecode.runner import torch_threads
from server.served import Served
from server.settings.sections import EngineSettings, LimitSettings, ModelSettings
from server.settings.settings import Settings, SettingsError, validated
from server.startup import check_same_tokens, defaults_of, described, read_tokenizer, start_frame, with_settings
from server.text.tokenizer import Tokenizer
from server.wire.plugins import WireTypes, wire_types
from server.worker.download import download
from server.worker.model_files import about, check, lacks_tokenizer, preparation, whole

Report = Callable[[str, float], None]  # (stage, fraction from 0 to 1)

OF_HTTP_ALONE = (
    *("max_body_values", "max_body_parts", "max_tokenize_tokens", "send_timeout"),
    "grammar_seconds",  # guards against clients
)
SETTINGS = tuple(
    name
    for section in (ModelSettings, EngineSettings, LimitSettings)
    for name in section.model_fields
    if name not in OF_HTTP_ALONE
)


@dataclass(frozen=True, slots=True)
class Opened:
    """num_threads: torch's during a tick; kernels bring threads of their own."""

    engine: Engine
    build: Build
    wires: WireTypes
    loaded: Loaded
    served: Served
    num_threads: int


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Raises SettingsError, a ValueError, on one that cannot be, is unknown or is the server's alone."""
    for name in given:
        if name not in SETTINGS and name in Settings.model_fields:
            raise SettingsError(f"{name} has no meaning without a server")
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            raise SettingsError(f"unknown setting '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    own = {"allow_priority": True}  # all requests are the caller's
    return validated({**given, **own}, dict.fromkeys(given, "argument"))


def open_engine(settings: Settings, report: Report) -> Opened:
    """Raises ModelError, or what loading raises: ValueErrors that say what is wrong."""
    plugins = load_plugins(settings.plugin)
    directory = model_directory(settings.model, report, may_download=settings.allow_download)
    tokenizer = with_settings(read_tokenizer(directory, Tokenizer.from_directory), settings, directory)
    directories = {name: _beside(name, model, settings, tokenizer, report) for name, model in settings.beside.items()}
    start = start_frame(settings, directory, tokenizer, directories)
    number = start.threads or default_threads()
    with torch.inference_mode(), torch_threads(number):
        model = _loaded(start, start.model, report)
        beside = {name: _loaded(start, path, report) for name, path in start.beside.items()}
        if all(each.is_compiled for each in (model, *beside.values())):
            number = 1
            torch.set_num_threads(number)
        engine, loaded = build_engine(start, model, beside)
    served = described(
        loaded,
        settings=settings,
        created=int(time.time()),
        tokenizer=tokenizer,
        grammars=OwnGrammarCheck(tokenizer.special_tokens()),
        defaults=defaults_of(settings, directory),
    )
    build = Builder(plugins, loaded.vocab_size)
    return Opened(engine, build, wire_types(plugins), loaded, served, number)


def model_directory(model: str, report: Report, *, may_download: bool) -> Path:
    """What `--model` means, made in this process where it has to be made. Raises ModelError."""
    check(model, may_download=may_download)
    making = preparation(model, may_download=may_download)
    directory = Path(model) if making is None else _MAKERS[making[0]](report, *making[1:])
    return whole(with_tokenizer(directory, report) if lacks_tokenizer(directory) else directory)


def _embedded(report: Report) -> Path:
    return ensure_directory(None, report)


def _unpacked(report: Report, file: str) -> Path:
    model = packed(Path(file))
    return unpack(model, model.cache_directory, report)


def _downloaded(_: Report, model: str) -> Path:
    return Path(download(model))


_MAKERS: Mapping[str, Callable[..., Path]] = {
    "decoding.gguf.embedded": _embedded,
    "decoding.gguf.unpacking": _unpacked,
    "server.worker.download": _downloaded,
}


def _beside(name: str, model: str, settings: Settings, tokenizer: Tokenizer, report: Report) -> Path:
    with about(name):
        directory = model_directory(model, report, may_download=settings.allow_download)
        check_same_tokens(read_tokenizer(directory, Tokenizer.from_directory), tokenizer)
    return directory


def _loaded(start: Start, directory: str, report: Report) -> Model:
    return open_model(
        directory,
        device=start.device,
        dtype=start.dtype,
        quantize=start.quantize,
        progress=report,
        is_batch_invariant=start.batch_invariant,
    )
