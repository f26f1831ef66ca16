"""The form that a request wants of its answer -> the grammar that enforces it, bounded before anybody compiles it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from decoding.contract.params import Grammar, InvalidParam, choice_grammar
from server.served import Served
from server.settings.limits import Limits
from server.translate.schema_fit import enforceable
from server.wire.structure import ResponseFormat, Structured, StructureFields

SCHEMA = "response_format.json_schema.schema"
ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Structure:
    """A grammar and the wire field it comes from. schema: where it is one; is_strict: whether all of it must hold."""

    field: str
    grammar: Grammar
    schema: dict[str, Any] | None = None
    is_strict: bool = True


def structure_of(wire: StructureFields) -> Structure | None:
    """Raises InvalidParam."""
    if wire.structured is not None:
        return _structured(wire.structured)
    return None if wire.response_format is None else _response_format(wire.response_format)


def check_structure(wire: StructureFields, limits: Limits) -> None:
    """Its bounds, without compiling. Raises InvalidParam."""
    schemas: list[tuple[str, dict[str, Any] | None]] = []
    if wire.structured is not None:
        schemas.append(("structured.json", wire.structured.json_))
        _check_texts(wire.structured, limits)
    if wire.response_format is not None and wire.response_format.json_schema is not None:
        schemas.append((SCHEMA, wire.response_format.json_schema.schema_))
    for field, schema in schemas:
        if schema is not None:
            check_schema(field, schema, limits)
    structure_of(wire)


async def grammar_of(wire: StructureFields, served: Served) -> Grammar | None:
    """The grammar, known to compile. Raises InvalidParam."""
    wanted = structure_of(wire)
    if wanted is None:
        return None
    check_ending(wanted.field, served)
    if wanted.schema is not None:
        return _schema(await enforceable(wanted.field, wanted.schema, served, is_strict=wanted.is_strict))
    problem = await served.grammars.problem(wanted.grammar)
    if problem is not None:
        raise InvalidParam(wanted.field, problem)
    return wanted.grammar


def check_ending(field: str, served: Served) -> None:
    """Raises InvalidParam where no answer could end."""
    if not served.eos_token_ids:
        raise InvalidParam(field, "is not supported: the model has no end of text")


def _structured(structured: Structured) -> Structure:
    given = [name for name, value in structured if value is not None]
    if len(given) != 1:
        raise InvalidParam("structured", "needs exactly one of json, regex, choice and grammar")
    if structured.json_ is not None:
        return Structure("structured.json", _schema(structured.json_), structured.json_)
    if structured.regex is not None:
        return Structure("structured.regex", Grammar("regex", structured.regex))
    if structured.choice is not None:
        return Structure("structured.choice", choice_grammar(tuple(dict.fromkeys(structured.choice))))
    return Structure("structured.grammar", Grammar("lark", structured.grammar or ""))


def _response_format(wanted: ResponseFormat) -> Structure | None:
    if (wanted.json_schema is None) == (wanted.type == "json_schema"):
        raise InvalidParam("response_format.json_schema", "goes with type json_schema, and only with it")
    if wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return Structure("response_format", Grammar("json_schema", ANY_OBJECT))
    is_strict = wanted.json_schema.strict is not False
    schema = wanted.json_schema.schema_ | ({} if is_strict else {"x-guidance": {"lenient": True}})
    return Structure(SCHEMA, _schema(schema), schema, is_strict)


def _schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def check_schema(field: str, schema: dict[str, Any], limits: Limits) -> None:
    """The bounds of a JSON schema. Raises InvalidParam."""
    if "x-guidance" in schema:
        raise InvalidParam(field, "must not set x-guidance")
    if _depth(schema) > limits.max_schema_depth:
        raise InvalidParam(field, f"must be nested at most {limits.max_schema_depth} deep")
    if len(_schema(schema).text.encode()) > limits.max_schema_bytes:
        raise InvalidParam(field, f"must have at most {limits.max_schema_bytes} bytes")


def _check_texts(structured: Structured, limits: Limits) -> None:
    most = limits.max_grammar_chars
    for field, text in (("structured.regex", structured.regex), ("structured.grammar", structured.grammar)):
        if text is not None and not 0 < len(text) <= most:
            raise InvalidParam(field, f"must have from 1 to {most} characters")
    choices = structured.choice
    if choices is None:
        return
    if not 0 < len(choices) <= limits.max_choices or not all(choices):
        raise InvalidParam("structured.choice", f"must hold from 1 to {limits.max_choices} strings, none of them empty")
    if sum(map(len, choices)) > most:
        raise InvalidParam("structured.choice", f"must have at most {most} characters")


def _depth(value: Any) -> int:
    """How deep objects and lists are nested, without recursion."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth
