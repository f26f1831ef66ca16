"""A request of /v1/responses as the chat request that asks for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.bounds import bad_field
from server.chat_fields import Message
from server.errors import ApiError
from server.protocol import ChatRequest, Decoding
from server.response_fields import ResponseRequest
from server.structure_fields import JsonSchema, ResponseFormat

STORED = ("previous_response_id", "conversation")
"""Fields that name what an earlier request left behind."""


def refuse_stored(body: Mapping[str, Any]) -> None:
    """Raises ApiError 400 where the request goes on from another, which this server has forgotten."""
    for name in STORED:
        if body.get(name) is not None:
            message = f"{name} is not supported: nothing is stored here; send the whole conversation as input"
            raise ApiError(400, message, param=name, code="unsupported_field")


def chat_request(wire: ResponseRequest) -> ChatRequest:
    """Raises ApiError 400 for what a response cannot be."""
    if wire.num_choices != 1:
        raise bad_field("n", "must be 1: a response has one output")
    has_logprobs = bool(wire.include)
    if wire.top_logprobs and not has_logprobs:
        raise bad_field("top_logprobs", 'has no meaning without "message.output_text.logprobs" in include')
    said = [Message(role=each.role, content=each.content) for each in wire.input]
    instructions = [] if wire.instructions is None else [Message(role="system", content=wire.instructions)]
    shared = {name: getattr(wire, name) for name in Decoding.model_fields} | _form(wire)
    return ChatRequest.model_construct(
        **shared,
        messages=instructions + said,
        max_completion_tokens=wire.max_output_tokens,
        logprobs=has_logprobs or None,
        top_logprobs=wire.top_logprobs,
    )


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
