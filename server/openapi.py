"""Bodies for /openapi.json: the routes read and write raw bytes, so FastAPI cannot see the wire types by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from pydantic import BaseModel

_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in (("4XX", "What the client can mend."), ("5XX", "What it cannot; with Retry-After, try again."))
}
"""The `responses` of every route whose errors are OpenAI's."""


@cache
def described(wire: type[BaseModel], reply: type[msgspec.Struct]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes `wire` and answers with `reply`."""
    schema = inlined(wire.model_json_schema(), {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}} | answered(reply)


@cache
def answered(reply: type[msgspec.Struct]) -> dict[str, Any]:
    """The same of a route without a body."""
    schema = inlined(msgspec.json.schema(reply), {})
    return {"responses": {"200": {"content": {"application/json": {"schema": schema}}}}}


def inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema without references, which point into itself, and that is not the root of what it becomes part of."""
    if isinstance(node, list):
        return [inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    definitions = definitions | node.get("$defs", {})
    if "$ref" in node:
        return inlined(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: inlined(value, definitions) for key, value in node.items() if key != "$defs"}
