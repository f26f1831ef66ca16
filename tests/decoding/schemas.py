"""Fifty JSON schemas of many kinds, bounded so that even a random model comes to an end."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

CLOSED: Schema = {"additionalProperties": False}


def text(most: int, **more: Any) -> Schema:
    return {"type": "string", "maxLength": most, **more}


def whole(low: int, high: int, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def listed(items: Schema, most: int, **more: Any) -> Schema:
    return {"type": "array", "items": items, "maxItems": most, **more}


def record(properties: dict[str, Schema], required: list[str] | None = None, **more: Any) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False, **more}


POINT = record({"x": whole(-9, 9), "y": whole(-9, 9)})
SHAPES = [
    record({"kind": {"const": "circle"}, "radius": whole(1, 99)}),
    record({"kind": {"const": "square"}, "side": whole(1, 99)}),
]

SCHEMAS: tuple[Schema, ...] = (
    # single values
    {"type": "boolean"},
    {"type": "null"},
    {"const": 42},
    {"const": {"a": [1, None, "x"]}},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, 2.5, True, None, "mixed", {"k": "v"}]},
    whole(0, 100),
    whole(-1000, -1),
    whole(0, 1000, multipleOf=7),
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 11},
    {"type": "number", "minimum": 0, "maximum": 1},
    text(0),
    text(12),
    text(8, minLength=4),
    text(20, pattern="^[A-Z][a-z]{1,8}$"),
    {"type": "string", "pattern": "^(\\+\\d{1,3} )?\\d{3}-\\d{4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uuid"},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    # lists
    listed(whole(0, 9), 4),
    listed({"enum": ["a", "b"]}, 5, minItems=2),
    listed(text(4), 3),
    listed(listed(whole(0, 1), 3), 3),
    {"type": "array", "prefixItems": [text(5), whole(0, 9), {"type": "boolean"}], "items": False, "minItems": 3},
    {"type": "array", "prefixItems": [{"const": "head"}], "items": whole(0, 9), "minItems": 1, "maxItems": 4},
    listed(POINT, 3, minItems=1),
    # objects
    record({}),
    POINT,
    record({"name": text(10), "age": whole(0, 120)}),
    record({"name": text(10), "nick": text(6)}, required=["name"]),
    record({"a": whole(0, 9), "b": whole(0, 9), "c": whole(0, 9)}, required=[]),
    record({"tags": listed(text(5), 3), "ok": {"type": "boolean"}}),
    record({"user": record({"id": whole(1, 9999), "email": text(12, pattern="^[a-z]{1,4}@[a-z]{1,4}\\.org$")})}),
    record({"from": POINT, "to": POINT, "label": text(6)}),
    record({"deep": record({"deeper": record({"deepest": record({"value": {"type": "boolean"}})})})}),
    record({"quote\"d": whole(0, 1), "ünïcode": whole(0, 1), "with space": whole(0, 1)}),
    record({"id": whole(0, 9)}, patternProperties={"^x[0-9]{1,3}$": {"type": "boolean"}}, maxProperties=3),
    {"type": "object", "patternProperties": {"^k[0-3]$": whole(0, 9)}, "maxProperties": 2, **CLOSED},
    # alternatives and references
    {"anyOf": [whole(0, 9), text(5), {"type": "null"}]},
    {"anyOf": SHAPES},
    {"oneOf": SHAPES},
    {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 20}]},
    listed({"anyOf": [POINT, {"enum": ["gap"]}]}, 3),
    {"$defs": {"p": POINT}, **record({"a": {"$ref": "#/$defs/p"}, "b": {"$ref": "#/$defs/p"}})},
    {
        "$defs": {"tree": record({"value": whole(0, 9), "children": listed({"$ref": "#/$defs/leaf"}, 2)}),
                  "leaf": record({"value": whole(0, 9)})},
        "$ref": "#/$defs/tree",
    },
    # what people send
    record({
        "title": text(12), "priority": {"enum": ["low", "high"]}, "done": {"type": "boolean"},
        "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, "steps": listed(text(6), 3),
    }),
    record({
        "function": {"enum": ["search", "open"]},
        "arguments": record({"query": text(10), "limit": whole(1, 50)}, required=["query"]),
    }),
)  # fmt: skip
