"""The wire fields of a conversation: messages, the tools that may be called, and what the chat template is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from server.wire import Wire, option

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
JSON_TYPES = ("object", "array", "string", "number", "boolean", "null")
AnyJson = Annotated[Any, WithJsonSchema({"anyOf": [{"type": name} for name in JSON_TYPES]})]
ToolMode = Literal["none", "auto", "required"]


class TextPart(Wire):
    type: Literal["text"] = Field(description="text is the only kind of part.")
    text: str = Field(description="The text.")


_PARTS = TypeAdapter(list[TextPart])


def _joined(content: object) -> object:
    """Text parts become one string, a line each."""
    if content is None or isinstance(content, str):
        return content
    try:
        return "\n".join(part.text for part in _PARTS.validate_python(content, strict=True))
    except ValidationError:
        raise ValueError("must be a string or a list of parts of type text") from None


class CalledFunction(Wire):
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="JSON, as the answer had it.")
    parsed_arguments: AnyJson = Field(None, description="Put there by the OpenAI SDK; not read.")


class ToolCall(Wire):
    id: str = Field(description="The id by which a message of role tool answers.")
    type: Literal["function"] | None = Field("function", description="function is the only kind of tool.")
    function: CalledFunction = Field(description="What was called.")
    index: int | None = Field(None, description="Left over from a stream's delta; not read.")


class Message(Wire):
    """One turn. The fields that can only be null are those an answer bears that is sent back as history."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who speaks. developer is system to models that do not know it; tool answers a call."
    )
    content: Annotated[str | None, BeforeValidator(_joined)] = Field(
        None, description="A string or a list of text parts; null only beside tool_calls."
    )
    name: str | None = option("The speaker's name, for templates that show it.")
    tool_call_id: str | None = option("In a message of role tool: the call that it answers.")
    tool_calls: list[ToolCall] | None = option("In a message of role assistant: the calls that it made.")
    reasoning_content: str | None = option("What the assistant thought; shown by templates that know it.")
    refusal: None = option("Always null.")
    annotations: Annotated[list[None], Field(max_length=0)] | None = option("Always empty.")
    audio: None = option("Always null.")
    function_call: None = option("Always null.")
    parsed: AnyJson = option("Put there by the OpenAI SDK; not read.")

    @model_validator(mode="after")
    def _is_whole(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("can have tool_calls only with role assistant")
        if self.content is None and not self.tool_calls:
            raise ValueError("must have content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("must have a tool_call_id")
        return self


Messages = Annotated[list[Message], Field(min_length=1)]


class Function(Wire):
    name: FunctionName = Field(description="Letters, digits and any of _ . : -")
    description: str | None = option("What it does, for the model.")
    parameters: dict[str, Any] | None = option("JSON schema of the arguments, an object; default: no arguments.")
    strict: bool | None = option("Hold the arguments to the schema also with tool_choice auto.", False)


class Tool(Wire):
    type: Literal["function"] = Field(description="function is the only kind of tool.")
    function: Function = Field(description="A function that the model may call.")


class NamedFunction(Wire):
    name: FunctionName = Field(description="One of the tools' names.")


class NamedChoice(Wire):
    type: Literal["function"] = Field(description="function is the only kind of tool.")
    function: NamedFunction = Field(description="The function that must be called.")


def _choice(value: object) -> object:
    """As one form or the other; a union would blame both."""
    if value is None or (isinstance(value, str) and value in ToolMode.__args__):  # type: ignore[attr-defined]
        return value
    try:
        return NamedChoice.model_validate(value, strict=True)
    except ValidationError:
        raise ValueError from None


class ConversationFields(Wire):
    """What the chat template is told."""

    tools: list[Tool] | None = option("Functions that the model may call.")
    documents: list[dict[str, AnyJson]] | None = option("What the answer is to draw on, for templates that show it.")
    chat_template_kwargs: dict[str, Any] | None = option("The chat template's own variables, such as enable_thinking.")
    add_generation_prompt: bool | None = option("End the prompt with the beginning of the assistant's turn.", True)
    continue_final_message: bool | None = option(
        "Go on with the last message, the assistant's, instead of a new turn; add_generation_prompt is false then.",
        False,
    )


class ToolFields(ConversationFields):
    """How the tools may be called."""

    tool_choice: Annotated[ToolMode | NamedChoice | None, BeforeValidator(_choice)] = option(
        "none: no call; auto: the model decides; required: at least one call; or the one function to call. "
        "required and a named function are enforced by grammar.",
        "auto",
    )
    parallel_tool_calls: bool | None = option("Whether an answer may have several calls.", True)
