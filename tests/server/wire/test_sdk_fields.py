"""Every field of the installed OpenAI SDK works, is on the list of those without effect, or is refused by its name.

A new SDK's new field fails here until it has been decided on.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import openai.types as sdk
import pytest
from openai.types import chat, responses
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params
from openai.types.responses import response_input_item_param as items
from openai.types.shared_params.reasoning import Reasoning

from server.wire.base import Wire
from server.wire.chat import Function, Message, RefusalPart, TextPart, Tool, ToolCall
from server.wire.requests import ChatRequest, CompletionRequest, EmbeddingRequest, StreamOptions
from server.wire.responses import (
    ITEMS,
    CallItem,
    ReasoningItem,
    ResponseMessage,
    ResponsePart,
    ResponseReasoning,
    ResponseRequest,
    ResponseText,
    ResponseTextFormat,
    ResultItem,
)
from server.wire.structure import JsonSchema, ResponseFormat
from server.wire.unknown import (
    IGNORED,
    LATER_IN_CHAT,
    LATER_IN_EMBEDDINGS,
    LATER_IN_RESPONSES,
    OLDER_IN_CHAT,
    UNREAD,
    UNREAD_ITEMS,
)

Names = frozenset[str] | set[str]


def sent(params: Any) -> set[str]:
    """The fields of a TypedDict, those it inherits too, or of what an answer is read into."""
    return set(params.model_fields) if hasattr(params, "model_fields") else set(typing.get_type_hints(params))


def read(*wires: type[Wire]) -> set[str]:
    return {field.alias or name for wire in wires for name, field in wire.model_fields.items()}


DECIDED: dict[str, tuple[Any, Names]] = {
    "chat": (
        chat_params.CompletionCreateParamsStreaming,
        read(ChatRequest) | IGNORED | {*LATER_IN_CHAT, *OLDER_IN_CHAT},
    ),
    "completions": (sdk.completion_create_params.CompletionCreateParamsStreaming, read(CompletionRequest) | IGNORED),
    "responses": (
        response_params.ResponseCreateParamsStreaming,
        read(ResponseRequest) | IGNORED | LATER_IN_RESPONSES.keys(),
    ),
    "embeddings": (sdk.EmbeddingCreateParams, read(EmbeddingRequest) | IGNORED | LATER_IN_EMBEDDINGS.keys()),
    "stream options": (chat.ChatCompletionStreamOptionsParam, read(StreamOptions)),
    "stream options of responses": (response_params.StreamOptions, read(StreamOptions)),
    "assistant": (chat.ChatCompletionAssistantMessageParam, read(Message)),
    "system": (chat.ChatCompletionSystemMessageParam, read(Message)),
    "developer": (chat.ChatCompletionDeveloperMessageParam, read(Message)),
    "user": (chat.ChatCompletionUserMessageParam, read(Message)),
    "tool": (chat.ChatCompletionToolMessageParam, read(Message)),
    "an answer": (chat.ChatCompletionMessage, read(Message) | UNREAD),
    "text": (chat.ChatCompletionContentPartTextParam, read(TextPart) | UNREAD),
    "refusal": (chat.ChatCompletionContentPartRefusalParam, read(RefusalPart)),
    "call": (chat.ChatCompletionMessageFunctionToolCallParam, read(ToolCall)),
    "function tool": (chat.ChatCompletionFunctionToolParam, read(Tool)),
    "function": (sdk.shared_params.FunctionDefinition, read(Function)),
    "format": (sdk.shared_params.ResponseFormatJSONSchema, read(ResponseFormat)),
    "schema": (sdk.shared_params.response_format_json_schema.JSONSchema, read(JsonSchema)),
    "text config": (responses.ResponseTextConfigParam, read(ResponseText)),
    "text format": (responses.ResponseFormatTextJSONSchemaConfigParam, read(ResponseTextFormat)),
    "reasoning": (Reasoning, read(ResponseReasoning)),
    "easy message": (responses.EasyInputMessageParam, read(ResponseMessage)),
    "input message": (items.Message, read(ResponseMessage)),
    "output message": (responses.ResponseOutputMessageParam, read(ResponseMessage)),
    "input text": (responses.ResponseInputTextParam, read(ResponsePart) | UNREAD),
    "output text": (responses.ResponseOutputTextParam, read(ResponsePart) | UNREAD),
    "function call": (responses.ResponseFunctionToolCallParam, read(CallItem)),
    "function call output": (items.FunctionCallOutput, read(ResultItem)),
    "reasoning item": (responses.ResponseReasoningItemParam, read(ReasoningItem) | UNREAD_ITEMS),
}


@pytest.mark.parametrize("name", DECIDED)
def test_every_field_of_the_sdk_is_decided_on(name: str) -> None:
    params, decided = DECIDED[name]
    assert sent(params) - decided == set()


def kinds(union: Any) -> Iterator[str]:
    """The types that the objects of a union have."""
    for each in typing.get_args(union):
        hint = typing.get_type_hints(each).get("type")
        yield from _literals(hint)


def _literals(hint: Any) -> Iterator[str]:
    if typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    for each in typing.get_args(hint):
        if not isinstance(each, str):
            yield from _literals(each)


REFUSED_ITEMS = frozenset(
    (
        *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction"),
        *("compaction_trigger", "computer_call", "computer_call_output", "configuration_update", "custom_tool_call"),
        *("custom_tool_call_output", "file_search_call", "image_generation_call", "item_reference", "local_shell_call"),
        *("local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools"),
        *("program", "program_output", "shell_call", "shell_call_output", "tool_search_call", "tool_search_output"),
        "web_search_call",
    )
)
"""Of tools that there are not, and of what was stored: each a 400 that says so."""


def test_every_item_of_the_sdk_is_decided_on() -> None:
    assert set(kinds(items.ResponseInputItemParam)) - ITEMS.keys() == REFUSED_ITEMS


def test_what_comes_later_is_not_there_already() -> None:
    tables: tuple[tuple[type[Wire], Mapping[str, Any]], ...] = (
        (ChatRequest, LATER_IN_CHAT),
        (ChatRequest, OLDER_IN_CHAT),
        (EmbeddingRequest, LATER_IN_EMBEDDINGS),
    )
    for wire, later in tables:
        assert not later.keys() & (read(wire) | IGNORED)
