"""The answers of OpenAI's API and our extensions, as msgspec structs: field order and names are the wire's.

UNSET leaves a field out; None is sent as null. `server/answer/` fills them in.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Wire(msgspec.Struct, frozen=True):
    """An object of an answer."""


class PromptTokensDetails(Wire, frozen=True):
    """pause_tokens, latent_tokens: how many of the prompt's tokens were filler or thoughts behind it."""

    cached_tokens: int
    pause_tokens: int | UnsetType = UNSET
    latent_tokens: int | UnsetType = UNSET


class CompletionTokensDetails(Wire, frozen=True):
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Wire, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TraceStep(Wire, frozen=True):
    """One thing that the strategy saw or did. prompt: the index of its prompt, where there are several."""

    step: int
    kind: str
    values: dict[str, Any]
    prompt: int | UnsetType = UNSET


class Decoding(Wire, frozen=True):
    """What ran. computed_tokens is known when all is over: in a stream, with the usage. trace: as far as it is new."""

    strategy: str | UnsetType = UNSET
    effective: dict[str, Any] | UnsetType = UNSET
    computed_tokens: int | UnsetType = UNSET
    trace: list[TraceStep] | UnsetType = UNSET


ChoiceDecoding = dict[str, int | float | str]
"""What the strategy says of a choice: `score`, which it ranks by, and figures of its own."""


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
    obfuscation: str | UnsetType = UNSET


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


class FunctionCall(Wire, frozen=True):
    """arguments: JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Wire, frozen=True):
    id: str
    function: FunctionCall
    type: str = "function"


class Message(Wire, frozen=True):
    """content: null beside tool calls without a word."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


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


class FunctionDelta(Wire, frozen=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Wire, frozen=True):
    """id, type and the function's name come with a call's first delta."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(Wire, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


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
    obfuscation: str | UnsetType = UNSET


class EmbeddingUsage(Wire, frozen=True):
    prompt_tokens: int
    total_tokens: int


class Embedding(Wire, frozen=True):
    """embedding: numbers, or the base64 of little-endian float32."""

    index: int
    embedding: tuple[float, ...] | str
    object: str = "embedding"


class EmbeddingList(Wire, frozen=True):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    decoding: Decoding
    object: str = "list"


class Support(Wire, frozen=True):
    """What the model can do beyond completions. encoder: a prompt is the source it answers.

    strategies: the ids that GET /v1/strategies describes. tool_parser: how calls are written,
    null if tools are refused; tools_in: what shows them to the model, its chat_template or, if that takes none, the
    system_message or, if that is refused, the first_user_message. reasoning: whether reasoning_content is split off.
    """

    chat: bool
    draft_model: bool
    encoder: bool
    strategies: list[str]
    tool_parser: str | None
    tools_in: str | None
    reasoning: bool


class BesideModel(Wire, frozen=True):
    """A further model that strategies open rows in. name: what a request calls it; kv_tokens: what its cache holds."""

    name: str
    architecture: str
    kv_tokens: int


class Model(Wire, frozen=True):
    """generation_defaults: what holds instead of OpenAI's defaults where a request says nothing. beside: the models
    loaded with it, for strategies in which a request names them; they answer no request alone."""

    id: str
    created: int
    max_model_len: int
    architecture: str
    supports: Support
    generation_defaults: dict[str, Any]
    beside: list[BesideModel]
    object: str = "model"
    owned_by: str = "polydecode"


class ModelList(Wire, frozen=True):
    data: list[Model]
    object: str = "list"


class Exclusive(Wire, frozen=True):
    """None of `keys` goes together with any of `others`. A key is a field that is set, or field=value."""

    keys: tuple[str, ...]
    others: tuple[str, ...]
    reason: str


class Needed(Wire, frozen=True):
    key: str
    needs: str


class StrategyEntry(Wire, frozen=True):
    """when: the keys that ask for it. parameters: JSON schema of its own fields. combines_with: ids of steps."""

    id: str
    purpose: str
    paper: str | None
    available: bool
    when: tuple[str, ...]
    parameters: dict[str, Any]
    combines_with: list[str]
    excludes: list[Exclusive]
    object: str = "strategy"
    plugin: str | UnsetType = UNSET


class StepEntry(Wire, frozen=True):
    id: str
    purpose: str
    paper: str | None
    available: bool
    parameters: dict[str, Any]
    object: str = "step"
    plugin: str | UnsetType = UNSET


class JudgeEntry(Wire, frozen=True):
    """`best_of_rank` names it."""

    id: str
    purpose: str
    paper: str | None


class PluginEntry(Wire, frozen=True):
    """What the operator loaded beside what is built in."""

    name: str
    version: str
    strategies: list[str]
    steps: list[str]
    judges: list[JudgeEntry]


class StrategyList(Wire, frozen=True):
    """common: JSON schema of the fields that every strategy takes. bounds: what one request may ask for."""

    data: list[StrategyEntry]
    steps: list[StepEntry]
    common: dict[str, Any]
    needs: list[Needed]
    exclusions: list[Exclusive]
    bounds: dict[str, int]
    object: str = "list"
    plugins: list[PluginEntry] = []


class Tokens(Wire, frozen=True):
    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | None = None


class Text(Wire, frozen=True):
    prompt: str
