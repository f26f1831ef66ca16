"""The three things that can be asked, each read and checked as the server's route of that path does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from polydecode.job import Job
from server.answer.chat_format import ChatFormat
from server.answer.completion_format import CompletionFormat
from server.answer.embedding import embedding_list
from server.served import Served
from server.settings.limits import Limits
from server.translate.bounds import asked_within, embedding_within
from server.translate.plan import Plan
from server.translate.tool_use import with_allowed_tools
from server.translate.translate import chat_plan, completion_plan, embedding_plan
from server.wire.body import Ignored, parse
from server.wire.plugins import WireTypes
from server.wire.requests import EmbeddingRequest
from server.wire.unknown import LATER_IN_CHAT, LATER_IN_EMBEDDINGS, OLDER_IN_CHAT

Body = Mapping[str, Any]
Planned = Callable[[Served], Awaitable[Plan]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """read: the body's plan, once the model is at hand, and the fields without effect. whole: the server's answer."""

    path: str
    read: Callable[[Body, Limits, WireTypes], tuple[Planned, Ignored]]
    whole: Callable[[Job, Served, Body], msgspec.Struct]
    is_chat: bool = False


def _read_completion(body: Body, limits: Limits, wires: WireTypes) -> tuple[Planned, Ignored]:
    wire, ignored = parse(wires.completion, body)
    return partial(completion_plan, asked_within(wire, limits)), ignored


def _read_chat(body: Body, limits: Limits, wires: WireTypes) -> tuple[Planned, Ignored]:
    wire, ignored = parse(wires.chat, body, {**LATER_IN_CHAT, **OLDER_IN_CHAT})
    return partial(chat_plan, asked_within(with_allowed_tools(wire), limits)), ignored


def _read_embedding(body: Body, limits: Limits, _: WireTypes) -> tuple[Planned, Ignored]:
    wire, ignored = parse(EmbeddingRequest, body, LATER_IN_EMBEDDINGS)
    return partial(embedding_plan, embedding_within(wire, limits)), ignored


def _completion(job: Job, served: Served, _: Body) -> msgspec.Struct:
    return CompletionFormat(job.plan, served.tokenizer.vocabulary).whole(job.answer, job.choices)


def _chat_completion(job: Job, served: Served, _: Body) -> msgspec.Struct:
    return ChatFormat(job.plan, served.tokenizer.vocabulary).whole(job.answer, job.choices)


def _embeddings(job: Job, _: Served, body: Body) -> msgspec.Struct:
    return embedding_list(job.plan, job.vectors, is_base64=body.get("encoding_format") == "base64")


COMPLETIONS = Endpoint("/v1/completions", _read_completion, _completion)
CHAT = Endpoint("/v1/chat/completions", _read_chat, _chat_completion, is_chat=True)
EMBEDDINGS = Endpoint("/v1/embeddings", _read_embedding, _embeddings)
ENDPOINTS = {each.path: each for each in (COMPLETIONS, CHAT, EMBEDDINGS)}
