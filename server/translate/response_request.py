"""A request of /v1/responses as the chat request that asks for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from server.errors import ApiError
from server.served import Served
from server.translate.asked import Asked
from server.translate.bounds import bad_field
from server.translate.plan import Plan
from server.translate.translate import chat_plan
from server.wire.chat import Message
from server.wire.requests import ChatRequest, Decoding, StreamOptions
from server.wire.responses import CallItem, Item, ReasoningItem, ResponseMessage, ResponseRequest, ResultItem
from server.wire.structure import JsonSchema, ResponseFormat

LOGPROBS = "message.output_text.logprobs"
STORED = ("previous_response_id", "conversation")
"""Fields that name what an earlier request left behind."""


def refuse_stored(body: Mapping[str, Any]) -> None:
    """Raises ApiError 400 where the request goes on from another, which this server has forgotten."""
    for name in STORED:
        if body.get(name) is not None:
            message = f"{name} is not supported: nothing is stored here; send the whole conversation as input"
            raise ApiError(400, message, param=name, code="unsupported_field")


def chat_request(wire: ResponseRequest, chat: type[ChatRequest] = ChatRequest) -> ChatRequest:
    """Raises ApiError 400 for what a response cannot be. chat: with the same plugins' fields."""
    if wire.num_choices != 1:
        raise bad_field("n", "must be 1: a response has one output")
    has_logprobs = LOGPROBS in (wire.include or ())
    if wire.top_logprobs and not has_logprobs:
        raise bad_field("top_logprobs", f'has no meaning without "{LOGPROBS}" in include')
    messages = _messages(wire.input)
    if not messages:
        raise bad_field("input", "must hold more than thoughts")
    instructions = [] if wire.instructions is None else [Message(role="system", content=wire.instructions)]
    shared = {name: getattr(wire, name) for name in _shared(type(wire))} | _form(wire)
    own = {"stream_options": _stream_options(wire), "num_return_sequences": 1}  # whatever the model recommends
    return chat.model_construct(
        **shared | own,
        messages=[*instructions, *messages],
        max_completion_tokens=wire.max_output_tokens,
        logprobs=has_logprobs or None,
        top_logprobs=wire.top_logprobs,
    )


def _shared(wire: type[ResponseRequest]) -> list[str]:
    """The fields of all that is decoded, and the plugins'."""
    return [*Decoding.model_fields, *(wire.model_fields.keys() - ResponseRequest.model_fields.keys())]


def without_effect(wire: ResponseRequest) -> list[str]:
    """The fields inside others that were accepted and do nothing."""
    asked = wire.reasoning.model_dump(exclude_none=True, exclude={"effort", "mode"}) if wire.reasoning else {}
    names = [f"reasoning.{name}" for name in asked]
    names += ["text.verbosity"] if wire.text and wire.text.verbosity else []
    return names + [f"include.{name}" for name in wire.include or () if name != LOGPROBS]


async def fitting(asked: Asked[ChatRequest], served: Served) -> Plan:
    """The plan of the whole, else of as many of the last turns as fit behind what the system says."""
    try:
        return await chat_plan(asked, served)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        overflow = error
    shorter = _from_later_turns(asked)
    plan, low, high = None, 0, len(shorter)
    while low < high:
        middle = (low + high) // 2
        try:
            plan, high = await chat_plan(shorter[middle], served), middle
        except ApiError as error:
            if error.code != "context_length_exceeded":
                raise
            low = middle + 1
    if plan is None:
        raise overflow
    return plan


def _from_later_turns(asked: Asked[ChatRequest]) -> list[Asked[ChatRequest]]:
    """Without the oldest turn, without the two oldest and so on. A turn begins with what the user says."""
    messages = asked.wire.messages
    system = list(takewhile(lambda message: message.role in ("system", "developer"), messages))
    starts = [i for i, message in enumerate(messages) if message.role == "user" and i > len(system)]
    kept = (system + messages[start:] for start in starts)
    return [replace(asked, wire=asked.wire.model_copy(update={"messages": each})) for each in kept]


def _stream_options(wire: ResponseRequest) -> StreamOptions | None:
    options = wire.stream_options
    if options is not None and (options.include_usage or options.continuous_usage_stats):
        raise bad_field("stream_options", "takes include_obfuscation alone: the last event always has the usage")
    return options if options is not None and options.include_obfuscation else None


def _messages(items: Sequence[Item]) -> list[Message]:
    """Thoughts go with what the assistant said next, and its calls with what it said before."""
    turns: list[dict[str, Any]] = []
    thoughts: dict[str, Any] = {}
    for item in items:
        if isinstance(item, ReasoningItem):
            thoughts = {"reasoning_content": item.content} if item.content else thoughts
            continue
        turn = _turn(item)
        is_assistant = turn["role"] == "assistant"
        if isinstance(item, CallItem) and not thoughts and turns and turns[-1]["role"] == "assistant":
            turns[-1].setdefault("tool_calls", []).extend(turn["tool_calls"])
        else:
            turns.append(turn | (thoughts if is_assistant else {}))
        thoughts = {}
    return [Message.model_validate(turn) for turn in turns]


def _turn(item: Item) -> dict[str, Any]:
    """An item as a chat has it."""
    if isinstance(item, CallItem):
        called = {"name": item.name, "arguments": item.arguments}
        return {"role": "assistant", "tool_calls": [{"id": item.call_id, "function": called}]}
    if isinstance(item, ResultItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
    assert isinstance(item, ResponseMessage)
    return {"role": item.role, "content": item.content}


def _form(wire: ResponseRequest) -> dict[str, ResponseFormat]:
    """text.format in the words of a chat's response_format."""
    asked = wire.text.format if wire.text else None
    if asked is None or asked.type == "text":
        return {}
    if wire.response_format is not None:
        raise bad_field("text.format", "and response_format are two ways of saying the same")
    if asked.type == "json_object":
        return {"response_format": ResponseFormat(type="json_object")}
    if asked.schema_ is None:
        raise bad_field("text.format.schema", "is required with type json_schema")
    schema = JsonSchema.model_construct(name=asked.name or "answer", schema_=asked.schema_, strict=asked.strict)
    return {"response_format": ResponseFormat.model_construct(type="json_schema", json_schema=schema)}
