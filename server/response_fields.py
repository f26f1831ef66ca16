"""The wire types of POST /v1/responses, as strict as those of `protocol.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from server.chat_fields import AnyJson
from server.protocol import Decoding
from server.structure_fields import Name
from server.wire import Count, Positive, TokenId, Wire, option


class ResponsePart(Wire):
    """Text of a message. The fields beside it are those an answer bears that is sent back as history."""

    type: Literal["input_text", "output_text", "text"] = Field(description="All kinds of text are the same here.")
    text: str = Field(description="The text.")
    annotations: Annotated[list[None], Field(max_length=0)] | None = option("Left over from an answer; not read.")
    logprobs: list[AnyJson] | None = option("Left over from an answer; not read.")


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

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: Annotated[str, BeforeValidator(_joined_parts)] = Field(description="A string or a list of text parts.")
    type: Literal["message"] | None = option("message is the only kind of item.")
    id: str | None = option("Left over from an answer; not read.")
    status: Literal["in_progress", "completed", "incomplete"] | None = option("Left over from an answer; not read.")
    phase: Literal["commentary", "final_answer"] | None = option("Left over from an answer; not read.")
    token_ids: list[TokenId] | None = option("Left over from an answer; not read.")
    decoding: dict[str, AnyJson] | None = option("Left over from an answer; not read.")


def _as_messages(value: object) -> object:
    """A string is what the user says."""
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    raise ValueError("must be a string or a list of messages")


class ResponseTextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = Field(description="Free text, any JSON object, or a schema.")
    name: Name | None = option("With type json_schema: a name of the client's; it has no effect.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="With type json_schema: which one.", json_schema_extra={"default": None}
    )
    description: str | None = option("A description of the client's; it has no effect.")
    strict: bool | None = option("false: leave out what of the schema cannot be enforced, rather than refuse it.", True)


class ResponseText(Wire):
    format: ResponseTextFormat | None = option("Text, or JSON.")


class ResponseRequest(Decoding):
    """POST /v1/responses. Nothing is stored."""

    input: Annotated[list[ResponseMessage], BeforeValidator(_as_messages), Field(min_length=1)] = Field(
        description="What the user says, or the conversation so far."
    )
    instructions: str | None = option("What stands before the input, as the system's message.")
    max_output_tokens: Positive | None = option("Most tokens of the answer; default: the rest of the context.")
    text: ResponseText | None = option("The form of the answer.")
    include: list[Literal["message.output_text.logprobs"]] | None = option("Log-probs of the tokens.", [])
    top_logprobs: Count | None = option("Alternatives beside each token.", 0)
