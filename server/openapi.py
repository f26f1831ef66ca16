"""Request bodies for /openapi.json: the routes read raw bytes, so FastAPI cannot see the wire types by itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def described(wire: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that takes `wire`."""
    schema = _inlined(wire.model_json_schema(), {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """References point into the schema itself, which is not OpenAPI's root: put what they name in their place."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    definitions = definitions | node.get("$defs", {})
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}
