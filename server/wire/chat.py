"""The wire fields of a conversation: messages, the tools that may be called, and what the chat template is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from server.wire.base import Items, Wire, option

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
JSON_TYPES = ("object", "array", "string", "number", "boolean", "null")
AnyJson = Annotated[Any, WithJsonSchema({"anyOf": [{"type": name} for name in JSON_TYPES]})]
ToolMode = Literal["none", "auto", "required"]


class TextPart(Wire):
    type: Literal["text"] = Field(description="A text.")
    text: str = Field(description="The text.")


class RefusalPart(Wire):
    type: Literal["refusal"] = Field(description="What the assistant said instead of an answer.")
    refusal: str = Field(description="The text.")


def part_reader(kinds: Mapping[str, type[Wire]]) -> TypeAdapter[list[Any]]:
    """Reads a list of parts, each as its type says, so that an error has the path of one part."""
    names = " or ".join(kinds)

    def read(part: object) -> Wire:
        kind = kinds.get(str(part.get("type"))) if isinstance(part, dict) else None
        if kind is None:
            raise ValueError(f"must be a part of type {names}: images, audio and files are not supported")
        return kind.model_validate(part, strict=True)

    return TypeAdapter(Items[Annotated[Any, BeforeValidator(read)]])


_PARTS = part_reader({"text": TextPart, "refusal": RefusalPart})


def _joined(content: object) -> object:
    """Parts become one string, a line each."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of parts of type text")
    parts = _PARTS.validate_python(content, strict=True)
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in parts)


def _of_a_function(value: object) -> object:
    """Tools and calls of another kind have fields of their own, which are not what is wrong with them."""
    if isinstance(value, dict) and value.get("type") not in (None, "function"):
        raise ValueError("must be of type function: custom tools are not supported")
    return value


class CalledFunction(Wire):
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="JSON, as the answer had it.")
    parsed_arguments: AnyJson = Field(None, description="Put there by the OpenAI SDK; not read.")


class ToolCall(Wire):
    _kind = model_validator(mode="before")(_of_a_function)

    id: str = Field(description="The id by which a message of role tool answers.")
    type: Literal["function"] | None = Field("function", description="function is the only kind of tool.")
    function: CalledFunction = Field(description="What was called.")
    index: int | None = Field(None, description="Left over from a stream's delta; not read.")


class Message(Wire):
    """One turn. The fields that can only be null are those an answer bears that is sent back as history.

    What an assistant thought or refused may come under the names that other servers have for it.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who speaks. developer is system to models that do not know it; tool answers a call."
    )
    content: Annotated[str | Items[TextPart | RefusalPart] | None, BeforeValidator(_joined)] = Field(
        None, description="A string or a list of text parts; null only beside tool_calls or a refusal."
    )
    name: str | None = option("The speaker's name, for templates that show it.")
    tool_call_id: str | None = option("In a message of role tool: the call that it answers.")
    tool_calls: Items[ToolCall] | None = option("In a message of role assistant: the calls that it made.")
    reasoning_content: str | None = option("What the assistant thought; shown by templates that know it.")
    reasoning: str | None = option("Another name of reasoning_content.")
    refusal: str | None = option("In a message of role assistant: what it said instead of an answer.")
    annotations: Annotated[Items[None], Field(max_length=0)] | None = option("Always empty.")
    audio: None = option("Always null.")
    function_call: None = option("Always null; the calls of today are tool_calls.")
    parsed: AnyJson = option("Put there by the OpenAI SDK; not read.")

    @model_validator(mode="after")
    def _is_whole(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("can have tool_calls only with role assistant")
        if None not in (self.reasoning, self.reasoning_content) and self.reasoning != self.reasoning_content:
            raise ValueError("has reasoning and reasoning_content, which are the same and must not differ")
        if self.refusal is not None and self.role != "assistant":
            raise ValueError("can have a refusal only with role assistant")
        if self.content is None and not self.tool_calls and self.refusal is None:
            raise ValueError("must have content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("must have a tool_call_id")
        return self

    @property
    def said(self) -> str:
        """The text, a refusal being one too."""
        return "\n".join(text for text in (self.content, self.refusal) if text and isinstance(text, str))

    @property
    def thought(self) -> str | None:
        return self.reasoning if self.reasoning_content is None else self.reasoning_content


Messages = Annotated[Items[Message], Field(min_length=1)]


class Function(Wire):
    name: FunctionName = Field(description="Letters, digits and any of _ . : -")
    description: str | None = option("What it does, for the model.")
    parameters: dict[str, Any] | None = option("JSON schema of the arguments, an object; default: no arguments.")
    strict: bool | None = option("Hold the arguments to the schema also with tool_choice auto.", False)


class Tool(Wire):
    _kind = model_validator(mode="before")(_of_a_function)

    type: Literal["function"] = Field(description="function is the only kind of tool.")
    function: Function = Field(description="A function that the model may call.")


class NamedFunction(Wire):
    name: FunctionName = Field(description="One of the tools' names.")


class NamedChoice(Wire):
    type: Literal["function"] = Field(description="function is the only kind of tool.")
    function: NamedFunction = Field(description="The function that must be called.")


class Allowed(Wire):
    mode: Literal["auto", "required"] = Field(description="Whether one of them must be called.")
    tools: Annotated[Items[NamedChoice], Field(min_length=1)] = Field(description="The functions that may be called.")


class AllowedTools(Wire):
    type: Literal["allowed_tools"] = Field(description="Some of the tools.")
    allowed_tools: Allowed = Field(description="Which, and how.")


_CHOICE = TypeAdapter[NamedChoice | AllowedTools](NamedChoice | AllowedTools)


def _choice(value: object) -> object:
    """As one form or the other; a union would blame both."""
    if value is None or (isinstance(value, str) and value in ToolMode.__args__):  # type: ignore[attr-defined]
        return value
    try:
        return _CHOICE.validate_python(value, strict=True)
    except ValidationError:
        raise ValueError from None


class ConversationFields(Wire):
    """What the chat template is told."""

    tools: Items[Tool] | None = option("Functions that the model may call.")
    documents: Items[dict[str, AnyJson]] | None = option("What the answer is to draw on, for templates that show it.")
    chat_template_kwargs: dict[str, Any] | None = option("The chat template's own variables, such as enable_thinking.")
    add_generation_prompt: bool | None = option("End the prompt with the beginning of the assistant's turn.", True)
    continue_final_message: bool | None = option(
        "Go on with the last message, the assistant's, instead of a new turn; add_generation_prompt is false then.",
        False,
    )


class ToolFields(ConversationFields):
    """How the tools may be called."""

    tool_choice: Annotated[ToolMode | NamedChoice | AllowedTools | None, BeforeValidator(_choice)] = option(
        "none: no call; auto: the model decides; required: at least one call; or the one function to call, or those "
        "that may be. required and a named function are enforced by grammar.",
        "auto",
    )
    parallel_tool_calls: bool | None = option("Whether an answer may have several calls.", True)
