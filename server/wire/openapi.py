"""What /openapi.json says of a route: these read raw bytes and answer with ready ones, so FastAPI sees no types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from pydantic import BaseModel

from server.wire.foreign_names import ALIASES
from server.wire.unknown import IGNORED

Json = dict[str, Any]

EXTENSION = "x-polydecode-extension"
OPENAI_FIELDS = frozenset(
    (
        *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "best_of"),
        *("stream", "stream_options", "logprobs", "top_logprobs", "echo", "stop", "presence_penalty", "suffix", "seed"),
        *("frequency_penalty", "logit_bias", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    )
)
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string", "description": "What is wrong, without any of the input."},
                "type": {"type": "string", "description": "The kind of error; each status has one."},
                "param": {"type": ["string", "null"], "description": "The field to blame."},
                "code": {"type": ["string", "null"], "description": "A stable name, where there is one."},
            },
        }
    },
}
ERRORS: Mapping[int, str] = {
    400: "A field is wrong or unknown, two exclude each other, or the context is too short.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or route.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "The queue is full; Retry-After says when to come back.",
    500: "A defect of the server, which logged it under X-Request-Id.",
    503: "No model is ready, or the request waited too long; Retry-After says when to come back.",
    504: "The request's deadline passed.",
}
GET_ERRORS = (401, 404, 500, 503)
HEADERS = {
    "X-Request-Id": {"description": "Names the request in the log.", "schema": {"type": "string"}},
}
IGNORED_HEADER = {
    "X-Ignored-Params": {
        "description": "The fields that were accepted without effect, if any.",
        "schema": {"type": "string"},
    }
}


def operation(
    summary: str,
    description: str,
    reply: type[msgspec.Struct],
    *,
    wire: type[BaseModel] | None = None,
    examples: Mapping[str, Json] | None = None,
    chunk: type[msgspec.Struct] | None = None,
) -> Json:
    """Keywords for the decorator of a route. examples: bodies by what they show; chunk: of the stream, if it can be."""
    content: Json = {"application/json": {"schema": reply_schema(reply)}}
    if chunk is not None:
        about = "Server-sent events: a chunk each, the last one [DONE]; or an error object and no [DONE]."
        content["text/event-stream"] = {"schema": {"description": about, "x-chunk": reply_schema(chunk)}}
    headers = HEADERS | (IGNORED_HEADER if chunk is not None else {})
    answers: dict[int | str, Json] = {200: {"description": "The answer.", "content": content, "headers": headers}}
    for status in ERRORS if wire is not None else GET_ERRORS:
        answers[status] = {"description": ERRORS[status], "content": {"application/json": {"schema": ERROR}}}
    answers["default"] = {"description": "Any other error.", "content": {"application/json": {"schema": ERROR}}}
    extra = described(wire, examples) if wire is not None else {}
    return {"summary": summary, "description": description, "responses": answers, "openapi_extra": extra}


def described(wire: type[BaseModel], examples: Mapping[str, Json] | None = None) -> Json:
    """The `openapi_extra` of a route that takes `wire`."""
    content: Json = {"schema": request_schema(wire)}
    if examples:
        content["examples"] = {name.replace(" ", "_"): {"summary": name, "value": v} for name, v in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


@cache
def request_schema(wire: type[BaseModel]) -> Json:
    """With what OpenAI does not know marked, and what is accepted without effect."""
    schema: Json = inlined(wire.model_json_schema(), {})
    if "stream" in schema["properties"]:
        for name, field in schema["properties"].items():
            if name not in OPENAI_FIELDS:
                field[EXTENSION] = True
        no_effect = {"description": "Accepted without effect; the answer's X-Ignored-Params names it."}
        schema["properties"] |= _aliases(schema["properties"]) | dict.fromkeys(sorted(IGNORED), no_effect)
    return schema


def _aliases(ours: Mapping[str, Any]) -> Json:
    """Other servers' names for these fields."""
    paths = {name: next((p for p in paths if p.partition(".")[0] in ours), None) for name, paths in ALIASES.items()}
    return {
        name: {"description": f"Another server's name of {path}.", EXTENSION: True}
        for name, path in paths.items()
        if path is not None
    }


@cache
def reply_schema(reply: type[msgspec.Struct]) -> Json:
    schema: Json = inlined(msgspec.json.schema(reply), {})
    return schema


def inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, which point into itself, and that is not the root of what it becomes part of."""
    if isinstance(node, list):
        return [inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    definitions = definitions | node.get("$defs", {})
    if "$ref" in node:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "$defs")}
        return inlined(definitions[node["$ref"].removeprefix("#/$defs/")] | beside, definitions)
    return {key: inlined(value, definitions) for key, value in node.items() if key != "$defs"}
