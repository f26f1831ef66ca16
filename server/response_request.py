"""A request of /v1/responses as the chat request that asks for the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.bounds import bad_field
from server.errors import ApiError
from server.protocol import ChatRequest, Decoding, Message, ResponseRequest

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
    if wire.text and wire.text.format and wire.text.format.type != "text":
        raise bad_field("text.format", "is not supported yet", code="unsupported_field")
    has_logprobs = bool(wire.include)
    if wire.top_logprobs and not has_logprobs:
        raise bad_field("top_logprobs", 'has no meaning without "message.output_text.logprobs" in include')
    said = [Message(role=each.role, content=each.content) for each in wire.input]
    instructions = [] if wire.instructions is None else [Message(role="system", content=wire.instructions)]
    shared = {name: getattr(wire, name) for name in Decoding.model_fields}
    return ChatRequest.model_construct(
        **shared,
        messages=instructions + said,
        max_completion_tokens=wire.max_output_tokens,
        logprobs=has_logprobs or None,
        top_logprobs=wire.top_logprobs,
    )
