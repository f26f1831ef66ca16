"""From settings to a ready worker: finds the model's files, reads its tokenizer, starts the worker, keeps it running.

It runs beside the HTTP server, which is up from the first moment; what goes wrong for good is raised from `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from decoding.contract.frames import Loaded, Open, Progress, Start
from server.queue.batcher import Batcher
from server.served import Served
from server.settings.settings import Settings
from server.text.chat_template import ChatTemplate
from server.text.grammar_check import GrammarCheck
from server.text.template_trial import try_folder
from server.text.tokenizer import Tokenizer
from server.text.tool_parsers.registry import chosen
from server.translate.generation_defaults import recommended
from server.worker.mailbox import Mailbox
from server.worker.model_files import ModelError, about, default_name, resolve
from server.worker.progress import ProgressDisplay

LoadTokenizer = Callable[[Path], Tokenizer]


class Startup:
    """Shows how far it is, and how far the worker is with loading, which it hears from the mailbox."""

    def __init__(self, settings: Settings, batcher: Batcher, display: ProgressDisplay, load: LoadTokenizer) -> None:
        self._settings = settings
        self._batcher = batcher
        self._display = display
        self._load_tokenizer = load
        self._created = int(time.time())
        self._log = structlog.get_logger("startup")

    async def run(self, mailbox: Mailbox) -> None:
        """Prepares the model, supervises its worker until the mailbox is stopped. Raises ModelError, WorkerGaveUp."""
        settings = self._settings
        try:
            directory = await resolve(settings.model, self._display.show, may_download=settings.allow_download)
            with contextlib.ExitStack() as until_the_end:
                preparing = asyncio.create_task(self._prepare(mailbox, directory, until_the_end))
                until_the_end.callback(preparing.cancel)
                await mailbox.run(preparing, self, opening_frame(settings, directory))
        finally:
            self._display.close()

    async def _prepare(self, mailbox: Mailbox, directory: Path, until_the_end: contextlib.ExitStack) -> Start:
        """What the worker is to load, and the batcher's connection to it, made while the worker starts up."""
        settings = self._settings
        tokenizer = await asyncio.to_thread(read_tokenizer, directory, self._load_tokenizer)
        tokenizer = with_settings(tokenizer, settings, directory)
        defaults = defaults_of(settings, directory)
        beside = {name: await self._beside(name, model, tokenizer) for name, model in settings.beside.items()}
        grammars = GrammarCheck(tokenizer.special_tokens(), settings.grammar_seconds)
        until_the_end.callback(grammars.close)
        describe = partial(
            described,
            settings=settings,
            created=self._created,
            tokenizer=tokenizer,
            grammars=grammars,
            defaults=defaults,
        )
        self._batcher.connect(mailbox, describe)
        return start_frame(settings, directory, tokenizer, beside)

    def worker_progressed(self, progress: Progress) -> None:
        self._display.show(progress.stage, progress.fraction)

    def worker_loaded(self, loaded: Loaded) -> None:
        self._display.close()
        self._log.info(
            "ready",
            model=served_names(self._settings)[0],
            architecture=loaded.architecture,
            device=loaded.device,
            dtype=loaded.dtype,
            dtype_reason=loaded.dtype_reason,
            max_model_len=loaded.max_model_len,
            max_rows=loaded.max_rows,
            kv_tokens=loaded.num_pages * loaded.page_size,
            beside={each.name: each.architecture for each in loaded.beside},
        )

    async def _beside(self, name: str, model: str, tokenizer: Tokenizer) -> Path:
        """A further model's directory, once it is certain that both models mean the same by a token id."""
        with about(name):
            directory = await resolve(model, self._display.show, may_download=self._settings.allow_download)
            own = await asyncio.to_thread(read_tokenizer, directory, self._load_tokenizer)
            check_same_tokens(own, tokenizer)
        return directory


def read_tokenizer(directory: Path, load: LoadTokenizer) -> Tokenizer:
    """Raises ModelError."""
    try_folder(directory)
    try:
        return load(directory)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"the model's tokenizer cannot be read: {type(error).__name__}") from error


def with_settings(tokenizer: Tokenizer, settings: Settings, directory: Path) -> Tokenizer:
    """With the operator's chat template, if there is one. Raises ModelError."""
    if not settings.chat_template:
        return tokenizer
    return tokenizer.with_template(ChatTemplate.from_file(Path(settings.chat_template), directory))


def check_same_tokens(other: Tokenizer, tokenizer: Tokenizer) -> None:
    """A further model must mean the same by a token id. Raises ModelError."""
    if other.token_bytes() != tokenizer.token_bytes():
        raise ModelError("its tokenizer has other tokens than the model's")


def defaults_of(settings: Settings, directory: Path) -> Mapping[str, Any]:
    """Wire fields that hold where a request says nothing."""
    return recommended(directory, settings.max_rows_per_prompt) if settings.generation_defaults == "model" else {}


def described(
    loaded: Loaded,
    *,
    settings: Settings,
    created: int,
    tokenizer: Tokenizer,
    grammars: GrammarCheck,
    defaults: Mapping[str, Any],
) -> Served:
    """What is served, as requests are translated by it. created: in Unix seconds."""
    return Served(
        names=served_names(settings),
        vocab_size=loaded.vocab_size,
        max_model_len=loaded.max_model_len,
        eos_token_ids=loaded.eos_token_ids,
        created=created,
        tokenizer=tokenizer.within(loaded.vocab_size),
        architecture=loaded.architecture,
        num_layers=loaded.num_layers,
        ties_embeddings=loaded.ties_embeddings,
        beside=loaded.beside,
        grammars=grammars,
        tools=chosen(settings.tool_parser, tokenizer.template),
        has_reasoning=_has_reasoning(settings.reasoning_parser, tokenizer.template),
        generation_defaults=defaults,
        encoder=loaded.encoder,
        has_head=loaded.has_head,
        pool_by=settings.embedding_pooling,
        max_prompt_scores=settings.max_prompt_scores,
    )


def _has_reasoning(asked: str, template: ChatTemplate | None) -> bool:
    return asked == "think" or (asked == "auto" and template is not None and template.has_reasoning)


def served_names(settings: Settings) -> tuple[str, ...]:
    return settings.served_model_name or (default_name(settings.model),)


def opening_frame(settings: Settings, directory: Path) -> Open:
    return Open(
        model=str(directory),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        batch_invariant=settings.batch_invariant,
        quantize=settings.quantize,
    )


def start_frame(settings: Settings, directory: Path, tokenizer: Tokenizer, beside: Mapping[str, Path]) -> Start:
    return Start(
        model=str(directory),
        device=settings.device,
        dtype=settings.dtype,
        max_rows=settings.max_rows,
        max_model_len=settings.max_model_len,
        kv_memory_bytes=settings.kv_memory_bytes,
        tick_tokens=settings.tick_tokens,
        prefix_cache=settings.prefix_cache,
        threads=settings.threads,
        token_bytes=tokenizer.token_bytes(),
        special_tokens=tokenizer.special_tokens(),
        eos_token_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        beside={name: str(path) for name, path in beside.items()},
        batch_invariant=settings.batch_invariant,
        quantize=settings.quantize,
        launch_ahead=settings.launch_ahead,
        plugins=settings.plugin,
    )
