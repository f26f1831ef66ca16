"""Request bodies for /openapi.json: the routes read raw bytes, so FastAPI cannot see the wire types by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel


@cache
def described(wire: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes `wire`."""
    schema = inlined(wire.model_json_schema(), {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


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
