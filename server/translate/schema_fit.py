"""How much of a JSON schema can be enforced: all of it or, where that is enough, what is left without what cannot."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from decoding.contract.json_schema import BOUNDS, Step, parts, rebuilt
from decoding.contract.params import Grammar, InvalidParam
from server.served import Served

MAX_PROBES = 24  # parts of a schema that are looked at one by one, each by compiling it
TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
FRAGILE = (
    *("type", "pattern", "patternProperties", "format", "enum", "const", *BOUNDS, "multipleOf"),
    *("minLength", "maxLength", "minItems", "maxItems", "$ref"),
)
DEFINITIONS = ("$defs", "definitions")
Place = tuple[Step, ...]


async def enforceable(field: str, schema: dict[str, Any], served: Served, *, is_strict: bool) -> dict[str, Any]:
    """The schema, if it is not strict without the keywords that cannot be enforced. Raises InvalidParam naming one."""
    problem = await _problem(schema, served)
    if problem is None:
        return schema
    culprits = [each async for each in _culprits(schema, served)]
    if is_strict:
        raise InvalidParam(field, problem + (f": {_shown(*culprits[0])}" if culprits else ""))
    for looser in (_without(schema, culprits), _plain(schema)):
        if await _problem(looser, served) is None:
            return looser
    return {"type": "object"}


async def _problem(schema: Mapping[str, Any], served: Served) -> str | None:
    return await served.grammars.problem(Grammar("json_schema", json.dumps(schema, ensure_ascii=False)))


async def _culprits(schema: dict[str, Any], served: Served) -> AsyncIterator[tuple[Place, str]]:
    """Keywords that do not compile even alone, with the place of each."""
    definitions = {name: schema[name] for name in DEFINITIONS if name in schema}
    for place, keyword, value in _suspects(schema):
        if keyword == "type":
            is_wrong = not {value} <= TYPES if isinstance(value, str) else False
        else:
            alone = {keyword: value} | (definitions if keyword == "$ref" else {})
            is_wrong = await _problem(alone, served) is not None
        if is_wrong:
            yield place, keyword


def _suspects(schema: dict[str, Any]) -> Iterator[tuple[Place, str, Any]]:
    """References last: what they point to may be at fault itself."""
    found = [(p, keyword, part[keyword]) for p, part in parts(schema) for keyword in FRAGILE if keyword in part]
    found.sort(key=lambda suspect: suspect[1] == "$ref")
    yield from found[:MAX_PROBES]


def _without(schema: dict[str, Any], culprits: list[tuple[Place, str]]) -> dict[str, Any]:
    gone = set(culprits)

    def left(part: dict[str, Any], place: Place) -> dict[str, Any]:
        return {key: value for key, value in part.items() if (place, key) not in gone}

    looser: dict[str, Any] = rebuilt(schema, left)
    return looser


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Types and properties alone."""
    kept = {"type", "properties", "items", "required", "additionalProperties", "enum"}

    def left(part: dict[str, Any], _: Place) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key in kept and (key != "type" or _is_known(value))}

    looser: dict[str, Any] = rebuilt(schema, left)
    return looser


def _is_known(kind: object) -> bool:
    return kind in TYPES if isinstance(kind, str) else isinstance(kind, list) and set(map(str, kind)) <= TYPES


def _shown(place: Place, keyword: str) -> str:
    """'pattern' at properties.email."""
    path = ".".join(str(step) for step in place)[:200]
    return f"'{keyword}'" + (f" at {path}" if path else "")
