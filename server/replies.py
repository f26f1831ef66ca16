"""The answers of OpenAI's API and our extensions, as msgspec structs: field order and names are the wire's.

UNSET leaves a field out; None is sent as null. They are filled in `completion_format.py` and `chat_format.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Wire(msgspec.Struct, frozen=True):
    """An object of an answer."""


class PromptTokensDetails(Wire, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(Wire, frozen=True):
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Wire, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Decoding(Wire, frozen=True):
    """What ran. computed_tokens is known when all is over: in a stream, with the usage."""

    strategy: str
    effective: dict[str, Any]
    computed_tokens: int | UnsetType = UNSET


class ChoiceDecoding(Wire, frozen=True):
    """score: cumulative raw log-prob of the choice."""

    score: float


class PromptLogprob(Wire, frozen=True):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(Wire, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Wire, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    decoding: ChoiceDecoding | UnsetType = UNSET


class Completion(Wire, frozen=True):
    """The whole answer, and each chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET
    decoding: Decoding | UnsetType = UNSET


class TopLogprob(Wire, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Wire, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class Message(Wire, frozen=True):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Wire, frozen=True):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    decoding: ChoiceDecoding | UnsetType = UNSET


class ChatCompletion(Wire, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    object: str = "chat.completion"
    usage: Usage | UnsetType = UNSET
    decoding: Decoding | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Delta(Wire, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatDelta(Wire, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    decoding: ChoiceDecoding | UnsetType = UNSET


class ChatChunk(Wire, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatDelta]
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET
    decoding: Decoding | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Model(Wire, frozen=True):
    id: str
    created: int
    max_model_len: int
    architecture: str
    object: str = "model"
    owned_by: str = "polydecode"


class ModelList(Wire, frozen=True):
    data: list[Model]
    object: str = "list"


class Tokens(Wire, frozen=True):
    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | None = None


class Text(Wire, frozen=True):
    prompt: str
