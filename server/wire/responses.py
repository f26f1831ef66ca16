"""The wire types of POST /v1/responses, as strict as those of `protocol.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from server.wire.base import Count, Items, Positive, TokenId, Wire, option
from server.wire.chat import AnyJson, RefusalPart, part_reader
from server.wire.requests import Decoding
from server.wire.structure import Name


class ResponsePart(Wire):
    """Text of a message. The fields beside it are those an answer bears that is sent back as history."""

    type: Literal["input_text", "output_text", "text", "reasoning_text"] = Field(
        description="All kinds of text are the same here."
    )
    text: str = Field(description="The text.")
    annotations: Annotated[Items[None], Field(max_length=0)] | None = option("Left over from an answer; not read.")
    logprobs: Items[AnyJson] | None = option("Left over from an answer; not read.")


Parts = Items[ResponsePart | RefusalPart]
_TEXTS: Mapping[str, type[Wire]] = dict.fromkeys(("input_text", "output_text", "text"), ResponsePart)
_PARTS = part_reader({**_TEXTS, "refusal": RefusalPart})
_THOUGHTS = part_reader({"reasoning_text": ResponsePart})


def _joined_parts(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of parts of type input_text or output_text")
    parts = _PARTS.validate_python(content, strict=True)
    return "\n".join(part.text if isinstance(part, ResponsePart) else part.refusal for part in parts)


def _joined_thoughts(content: object) -> str:
    return "\n".join(part.text for part in _THOUGHTS.validate_python(content or [], strict=True))


Text = Annotated[str | Parts, BeforeValidator(_joined_parts)]
UNREAD = "Left over from an answer; not read."


class ResponseItem(Wire):
    """One item of a response's input. These fields are those an answer's items bear that are sent back."""

    id: str | None = option(UNREAD)
    status: Literal["in_progress", "completed", "incomplete"] | None = option(UNREAD)


class ResponseMessage(ResponseItem):
    """One turn. The fields behind `type` are those an answer bears that is sent back."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: Text = Field(description="A string or a list of text parts.")
    type: Literal["message"] | None = option("A message; the default.")
    phase: Literal["commentary", "final_answer"] | None = option(UNREAD)
    token_ids: Items[TokenId] | None = option(UNREAD)
    decoding: dict[str, AnyJson] | None = option(UNREAD)


class CallItem(ResponseItem):
    """A call that the assistant made."""

    type: Literal["function_call"] = Field(description="A call of a function.")
    call_id: str = Field(description="The id by which a function_call_output answers.")
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="JSON, as the answer had it.")
    namespace: str | None = option(UNREAD)
    caller: AnyJson = option(UNREAD)
    async_: bool | None = Field(None, alias="async", description=UNREAD, json_schema_extra={"default": None})
    parsed_arguments: AnyJson = option("Put there by the OpenAI SDK; not read.")


class ResultItem(ResponseItem):
    """What a call came to."""

    type: Literal["function_call_output"] = Field(description="The result of a call.")
    call_id: str = Field(description="The call that it answers.")
    output: Text = Field(description="A string or a list of text parts.")
    name: str | None = option(UNREAD)
    namespace: str | None = option(UNREAD)
    caller: AnyJson = option(UNREAD)


class ReasoningItem(ResponseItem):
    """What the assistant thought before what it said next."""

    type: Literal["reasoning"] = Field(description="Thoughts.")
    content: Annotated[str | Items[ResponsePart] | None, BeforeValidator(_joined_thoughts)] = option(
        "The thoughts, shown by templates that know them."
    )


Item = ResponseMessage | CallItem | ResultItem | ReasoningItem
ITEMS: Mapping[str, type[ResponseItem]] = {
    "message": ResponseMessage,
    "function_call": CallItem,
    "function_call_output": ResultItem,
    "reasoning": ReasoningItem,
}


def _item(value: object) -> object:
    """As its type says."""
    named = value if isinstance(value, dict) else {}
    kind = str(named.get("type") or ("item_reference" if named.keys() <= {"id"} else "message"))
    if kind == "item_reference" and named:
        raise ValueError("is an item_reference, but nothing is stored here: send the item itself")
    if not isinstance(value, dict) or kind not in ITEMS:
        raise ValueError(f"must be an item of type {' or '.join(ITEMS)}: other tools than functions are not supported")
    return ITEMS[kind].model_validate(value, strict=True)


_ITEMS = TypeAdapter(Items[Annotated[Any, BeforeValidator(_item)]])


def _as_items(value: object) -> object:
    """A string is what the user says."""
    if isinstance(value, list):
        return _ITEMS.validate_python(value, strict=True)
    if isinstance(value, str):
        return [ResponseMessage(role="user", content=value)]
    raise ValueError("must be a string or a list of items")


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
    verbosity: Literal["low", "medium", "high"] | None = option("No effect.")


class ResponseReasoning(Wire):
    """How much is thought is the model's own affair, and no thoughts are told here."""

    effort: Literal["none"] | None = option("Nothing else can be asked for.")
    mode: Literal["standard"] | None = option("Nothing else can be asked for.")
    summary: Literal["auto", "concise", "detailed"] | None = option("No effect.")
    generate_summary: Literal["auto", "concise", "detailed"] | None = option("No effect.")
    context: Literal["auto", "current_turn", "all_turns"] | None = option("No effect.")


class ResponseRequest(Decoding):
    """POST /v1/responses. Nothing is stored."""

    FORMS: ClassVar[Mapping[str, str]] = {
        **Decoding.FORMS,
        "reasoning": "an object whose effort, if it has one, is none: how much is thought cannot be asked for",
    }

    input: Annotated[Items[Item], BeforeValidator(_as_items), Field(min_length=1)] = Field(
        description="What the user says, or the conversation so far."
    )
    instructions: str | None = option("What stands before the input, as the system's message.")
    max_output_tokens: Positive | None = option("Most tokens of the answer; default: the rest of the context.")
    text: ResponseText | None = option("The form of the answer.")
    include: Items[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = option(
        "Log-probs of the tokens; the other has no effect.", []
    )
    reasoning: ResponseReasoning | None = option("What is known of it asks for nothing.")
    truncation: Literal["auto", "disabled"] | None = option(
        "auto: where the input is too long, its oldest turns are left out.", "disabled"
    )
    top_logprobs: Count | None = option("Alternatives beside each token.", 0)
