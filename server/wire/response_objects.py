"""The objects of /v1/responses and the events of its streams, as msgspec structs: names are the wire's."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from server.wire.answers import ChatLogprob, ChoiceDecoding, Decoding, PromptLogprobs, Wire


class OutputText(Wire, frozen=True):
    text: str
    logprobs: list[ChatLogprob] | None
    annotations: tuple[()] = ()
    type: str = "output_text"


class OutputMessage(Wire, frozen=True):
    id: str
    status: str
    content: list[OutputText]
    token_ids: tuple[int, ...] | UnsetType = UNSET
    decoding: ChoiceDecoding | UnsetType = UNSET
    role: str = "assistant"
    type: str = "message"


class InputTokensDetails(Wire, frozen=True):
    """Filling the prefix cache is nobody's cost here: cache_write_tokens is 0."""

    cached_tokens: int
    pause_tokens: int | UnsetType = UNSET
    cache_write_tokens: int = 0


class OutputTokensDetails(Wire, frozen=True):
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int = 0


class ResponseUsage(Wire, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Wire, frozen=True):
    reason: str


class TextFormat(Wire, frozen=True):
    type: str = "text"


class TextConfig(Wire, frozen=True):
    format: TextFormat = TextFormat()


class Response(Wire, frozen=True):
    """status: in_progress, completed, or incomplete where max_output_tokens or the context cut it off."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputMessage]
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    decoding: Decoding | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    error: None = None
    metadata: None = None
    object: str = "response"
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: bool = False
    text: TextConfig = TextConfig()
    tool_choice: str = "auto"
    tools: tuple[()] = ()
    truncation: str = "disabled"


class ResponseEvent(Wire, frozen=True):
    """One event of a stream; each type has some of the fields."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    item: OutputMessage | UnsetType = UNSET
    part: OutputText | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[ChatLogprob] | UnsetType = UNSET
    obfuscation: str | UnsetType = UNSET
