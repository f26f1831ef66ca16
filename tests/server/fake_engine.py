"""A batcher whose engine says what a test wrote, by the worker's rules for stops and ends. No model, no process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

import tokenizers
from fastapi import FastAPI
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from decoding.contract.frames import Chunk, Finished, Output, PromptScores
from decoding.contract.params import Request
from decoding.stopping import START, Stopping
from server.errors import ApiError, add_error_handlers
from server.queue.batcher import Batcher
from server.routes import chat, completions, embeddings, responses, strategies, tokenize
from server.routes import models as models_route
from server.served import Served
from server.settings.limits import Limits
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer
from server.text.tool_parsers.registry import chosen

END = "<|im_end|>"
TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('No monologues here.') }}{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["the quick brown fox jumps over the lazy dog. the dog sleeps.", "Hello world, hello again. 日本語 🙂"]

Step = Output | Exception | asyncio.Event
Script = Callable[[Request], Iterable[Step]]


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE over all 256 bytes with a few merges; the last ids are special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken(END, special=True)])
    return tokenizer


def make_served(max_model_len: int = 256, template: str = TEMPLATE) -> Served:
    tokenizer = Tokenizer(byte_tokenizer(), ChatTemplate(template, {}))
    size = tokenizer.vocabulary.size
    return Served(
        ("tiny", "alias"),
        vocab_size=size + 6,
        max_model_len=max_model_len,
        eos_token_ids=(size - 1,),
        created=1700000000,
        tokenizer=tokenizer,
        architecture="FakeForCausalLM",
        num_layers=8,
        tools=chosen("auto", tokenizer.template),
        has_reasoning="</think>" in template,
    )


def logprob_of(token_id: int) -> float:
    """Some number that only this id has."""
    return -(1 + token_id) / 64


def top_of(token_id: int, count: int) -> tuple[tuple[int, float], ...]:
    """The token itself is never among the alternatives."""
    return tuple((other, logprob_of(other)) for other in range(token_id + 1, token_id + 1 + count))


def speak(served: Served, request: Request, ids: Sequence[int], choice: int = 0, per_chunk: int = 1) -> list[Output]:
    """Outputs of one choice that wants to say `ids`, ended by EOS, stop ids, stop bytes and max_tokens."""
    said, reason, stop = _ended(served, request, ids)
    chunks = [
        _chunk(request, choice, said[start : start + per_chunk]) for start in range(0, max(len(said), 1), per_chunk)
    ]
    last = chunks[-1]
    chunks[-1] = Chunk(choice, last.token_ids, last.logprobs, last.top, reason, stop, score=-1.5)
    return [Output(0, (chunk,)) for chunk in chunks]


def _chunk(request: Request, choice: int, ids: Sequence[int]) -> Chunk:
    count = request.logprobs.output
    if count is None:
        return Chunk(choice, tuple(ids))
    return Chunk(choice, tuple(ids), tuple(map(logprob_of, ids)), tuple(top_of(i, count) for i in ids))


def _ended(served: Served, request: Request, ids: Sequence[int]) -> tuple[list[int], str, int | str | None]:
    special = {token_id: name.encode() for token_id, name in served.tokenizer.special_tokens()}
    stopping = Stopping(request.stopping, served.eos_token_ids, served.tokenizer.token_bytes(), special)
    progress = START
    for count, token_id in enumerate(ids[: request.stopping.max_tokens], start=1):
        progress, finish = stopping.push(progress, token_id)
        if finish is not None:
            return list(ids[:count]), finish.reason.value, finish.stop_reason
    return list(ids[: request.stopping.max_tokens]), "length", None


def finished(cached: int = 2, computed: int = 7) -> Output:
    return Output(0, finished=Finished(cached, computed, 0.0, 0.0, 0.0, 0))


def scores(request: Request) -> PromptScores:
    ids, count = request.prompt_ids, request.logprobs.prompt or 0
    logprobs = (None, *map(logprob_of, ids[1:]))
    return PromptScores(logprobs, ((), *(top_of(i, count) for i in ids[1:])))


def saying(served: Served, *texts: str, end: bool = True, per_chunk: int = 1) -> Script:
    """Choice i says texts[i % len]; the choices take turns, as in a batch."""

    def script(request: Request) -> Iterable[Step]:
        if request.logprobs.prompt is not None:
            yield Output(0, prompt=scores(request))
        rows = []
        for choice in range(request.strategy.n):
            ids = served.tokenizer.encode(texts[choice % len(texts)]) + (served.eos_token_ids if end else ())
            rows.append(speak(served, request, ids, choice, per_chunk))
        for i in range(max(map(len, rows))):
            yield Output(0, tuple(row[i].chunks[0] for row in rows if i < len(row)))
        yield finished()

    return script


@dataclass
class FakeTicket:
    steps: Iterable[Step]
    on_cancel: Callable[[], None]
    num_cancels: int = 0

    async def __aiter__(self) -> AsyncIterator[Output]:
        for step in self.steps:
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step

    def cancel(self) -> None:
        self.num_cancels += 1
        self.on_cancel()


@dataclass
class FakeReservation:
    batcher: FakeBatcher
    num_rows: int

    def __enter__(self) -> Self:
        self.batcher.reserved += self.num_rows
        return self

    def __exit__(self, *_: object) -> None:
        self.batcher.reserved -= self.num_rows

    def submit(self, requests: Sequence[Request], *, strategy: str, timeout: float | None) -> list[FakeTicket]:
        batcher = self.batcher
        batcher.strategies.append((strategy, timeout))
        batcher.requests += requests
        tickets = [FakeTicket(batcher.script(request), batcher.cancelled.set) for request in requests]
        batcher.tickets += tickets
        return tickets


@dataclass
class FakeBatcher:
    model: Served
    script: Script
    refusal: ApiError | None = None
    reserved: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    strategies: list[tuple[str, float | None]] = field(default_factory=list)
    tickets: list[FakeTicket] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def served(self) -> Served:
        if self.refusal is not None:
            raise self.refusal
        return self.model

    def reserve(self, endpoint: str, num_rows: int) -> FakeReservation:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((endpoint, num_rows))
        return FakeReservation(self, num_rows)


def make_app(batcher: FakeBatcher, limits: Limits | None = None) -> FastAPI:
    app = FastAPI(openapi_url=None)
    known, bounds = cast(Batcher, batcher), limits or Limits()
    app.include_router(completions.router(known, bounds))
    app.include_router(chat.router(known, bounds))
    app.include_router(responses.router(known, bounds))
    app.include_router(embeddings.router(known, bounds))
    app.include_router(models_route.router(known))
    app.include_router(strategies.router(known, bounds))
    app.include_router(tokenize.router(known, bounds))
    add_error_handlers(app)
    return app
