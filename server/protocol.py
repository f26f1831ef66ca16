"""The requests of OpenAI's API and our extensions, as they come over the wire: types and fixed bounds.

Strict: no number from a string or a boolean, no NaN, no unknown field. null means the default everywhere. What depends
on the settings is checked in `bounds.py`, what excludes what in `mode.py`, what depends on the model in `translate.py`;
`fields.py` refuses what is not supported yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError

from server.search_fields import SearchFields
from server.token_fields import PauseTokens, TokenFields
from server.wire import MAX_INT, Count, Positive, TokenId, Wire, option

PROMPT = "a string, a list of strings, a list of token ids or a list of lists of token ids, none of them empty"
CONTEXT = "a string or a list of token ids"

# Unions and maps: completes "<field> must be …", for pydantic would name its own types and the client's keys
MUST_BE = {
    "prompt": PROMPT,
    "stop": "a string or a list of strings",
    "logit_bias": "a map from token ids, as strings, to numbers in [-100, 100]",
    "early_stopping": 'true, false or "never"',
    "dola_layers": '"low", "high" or a list of layer numbers',
    "exponential_decay_length_penalty": "a list of two numbers: a length and a factor",
    "negative_prompt": CONTEXT,
    "kl_guided.prompt": CONTEXT,
}


class StreamOptions(Wire):
    include_usage: bool | None = option("A last chunk with the usage.", False)
    continuous_usage_stats: bool | None = option("The usage so far in each chunk.", False)


class Decoding(TokenFields, SearchFields):
    """The fields that completions and chat share."""

    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    stream: bool | None = option("Answer as server-sent events.", False)
    stream_options: StreamOptions | None = option("What a stream says beside the text.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = option("Same seed, same answer; default: drawn.")

    stop: str | list[str] | None = option("Texts that end a choice.")
    stop_token_ids: list[TokenId] | None = option("Tokens that end a choice.")
    ignore_eos: bool | None = option("Go on behind EOS.", False)
    min_tokens: Count | None = option("No end of the text before that many tokens.", 0)
    min_new_tokens: Count | None = option("Another name of min_tokens.", 0)
    pause_tokens: PauseTokens | None = option("Filler between prompt and answer, never part of the answer.")

    prompt_logprobs: Count | None = option("Log-probs of the prompt's tokens, and of that many alternatives.")
    logprobs_mode: Literal["raw", "processed"] | None = option("Log-probs of the model, or of the pipeline.", "raw")
    return_token_ids: bool | None = option("Also return token ids.", False)
    skip_special_tokens: bool | None = option("Leave special tokens out of the text.", True)
    include_stop_str_in_output: bool | None = option("Leave the stop text in the answer.", False)
    trace: bool | None = option("Also return what the strategy saw and did at each step.", False)

    cache_salt: str | None = option("Requests share cached prompts only with those of the same salt.")
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = option("Lower runs first.", 0)
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = option("Seconds in which the answer must be complete.")


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

    prompt: Prompt
    suffix: str | None = option("Text behind the gap; refused unless the model can fill in the middle.")
    max_tokens: Count | None = option("Most tokens of a choice.", 16)
    echo: bool | None = option("Put the prompt before the answer.", False)
    logprobs: Count | None = option("Log-probs of the tokens, and of that many alternatives.")


class EmbeddingRequest(Wire):
    """POST /v1/embeddings. How vectors are pooled is the server's setting."""

    FORMS: ClassVar[Mapping[str, str]] = {"input": PROMPT}

    input: Prompt
    model: str | None = option("A name that GET /v1/models lists; default: the first.")
    encoding_format: Literal["float", "base64"] | None = option("Numbers, or base64 of float32.", "float")
    cache_salt: str | None = option("Requests share cached prompts only with those of the same salt.")
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = option("Lower runs first.", 0)
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = option("Seconds in which the answer must be complete.")


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
    max_tokens: Positive | None = option("Most tokens of a choice; default: the rest of the context.")
    max_completion_tokens: Positive | None = option("Another name of max_tokens.")
    logprobs: bool | None = option("Log-probs of the tokens.", False)
    top_logprobs: Count | None = option("Alternatives beside each token.", 0)


class ResponsePart(Wire):
    """Text of a message. The fields beside it are those an answer bears that is sent back as history."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


_RESPONSE_PARTS = TypeAdapter(list[ResponsePart])


def _joined_parts(content: object) -> str:
    if isinstance(content, str):
        return content
    try:
        return "\n".join(part.text for part in _RESPONSE_PARTS.validate_python(content, strict=True))
    except ValidationError:
        raise ValueError("must be a string or a list of parts of type input_text or output_text") from None


class ResponseMessage(Wire):
    """One turn of a response's input. The fields behind `type` are those an answer bears that is sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined_parts)]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    token_ids: list[TokenId] | None = None
    decoding: dict[str, Any] | None = None


def _as_messages(value: object) -> object:
    """A string is what the user says."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    raise ValueError("must be a string or a list of messages")


class ResponseTextFormat(Wire):
    """text alone until structured output is there."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class ResponseText(Wire):
    format: ResponseTextFormat | None = None


class ResponseRequest(Decoding):
    """POST /v1/responses. Nothing is stored."""

    input: Annotated[list[ResponseMessage], BeforeValidator(_as_messages), Field(min_length=1)]
    instructions: str | None = option("What stands before the input, as the system's message.")
    max_output_tokens: Positive | None = option("Most tokens of the answer; default: the rest of the context.")
    text: ResponseText | None = option("The form of the answer.")
    include: list[Literal["message.output_text.logprobs"]] | None = option("Log-probs of the tokens.", [])
    top_logprobs: Count | None = option("Alternatives beside each token.", 0)


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
