"""The requests of OpenAI's API and our extensions, as they come over the wire: types and fixed bounds.

Strict: no number from a string or a boolean, no NaN, no unknown field. null means the default everywhere. What depends
on the settings is checked in `bounds.py`, what depends on the model in `translate.py`; `fields.py` refuses what is not
supported yet.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

MAX_INT = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasKey = Annotated[str, Field(pattern=r"\A(0|[1-9][0-9]{0,9})\z")]

PROMPT = "a string, a list of strings, a list of token ids or a list of lists of token ids, none of them empty"
STOP = "a string or a list of strings"
LOGIT_BIAS = "a map from token ids, as strings, to numbers in [-100, 100]"


class Wire(BaseModel):
    """What every object of a request body obeys. A field's description completes "<field> must be …"."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Decoding(Wire):
    """The fields that completions and chat share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    best_of_rank: Literal["mean", "sum"] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[BiasKey, Bias] | None = Field(None, description=LOGIT_BIAS)
    allowed_token_ids: list[TokenId] | None = None
    sampler_order: Literal["hf", "vllm"] | None = None

    stop: str | list[str] | None = Field(None, description=STOP)
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    min_new_tokens: Count | None = None

    prompt_logprobs: Count | None = None
    logprobs_mode: Literal["raw", "processed"] | None = None
    return_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    cache_salt: str | None = None
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None


def _prompt_form(prompt: object) -> str:
    """The first entry decides: pydantic would try every form on every entry of what may be a million ids."""
    first = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if prompt is first:
        return "text"
    return "texts" if isinstance(first, str) else "id_lists" if isinstance(first, list) else "ids"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Tag("texts")]
    | Annotated[list[TokenId], Tag("ids")]
    | Annotated[list[list[TokenId]], Tag("id_lists")],
    Discriminator(_prompt_form),
]


class CompletionRequest(Decoding):
    """POST /v1/completions."""

    prompt: Prompt = Field(description=PROMPT)
    suffix: str | None = None
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: Count | None = None


class TextPart(Wire):
    type: Literal["text"]
    text: str


_PARTS = TypeAdapter(list[TextPart])


def _joined(content: object) -> str:
    """Text parts become one string, a line each."""
    if isinstance(content, str):
        return content
    try:
        return "\n".join(part.text for part in _PARTS.validate_python(content, strict=True))
    except ValidationError:
        raise ValueError("must be a string or a list of parts of type text") from None


class Message(Wire):
    """One turn. The fields that can only be null are those an answer bears that is sent back as history."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_joined)]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None
    refusal: None = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(Decoding):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None


class TokenizeRequest(Wire):
    """POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
