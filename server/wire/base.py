"""What every object of a request body obeys, and the types that its fields are made of.

Strict: no number from a string or a boolean, no NaN, no unknown field. null means the default everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from decoding.contract.params.declared import MAX_INT, Offered, Within, declared

Count = Annotated[int, Field(ge=0, le=MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# Seconds. Nothing can be answered in less than the first, hardly anything in less than the schema's
Deadline = Annotated[
    float, Field(ge=0.001, le=86400), WithJsonSchema({"type": "number", "minimum": 1, "maximum": 86400})
]

Entry = TypeVar("Entry")
Items = Annotated[list[Entry], Field(fail_fast=True)]
"""A list, read up to its first faulty entry: an error for each of a million would take seconds and a gigabyte."""


class Wire(BaseModel):
    """An object of a request body.

    FORMS: completes "<field> must be …" for unions and maps, whose types pydantic would name by its own names.
    """

    FORMS: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown(cls, value: object) -> object:
        """Unknown fields but for the first are left out, for there would be an error for each of what may be many."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        first = next(name for name in value if name not in known)
        return {name: inner for name, inner in value.items() if name in known or name == first}


def option(description: str, default: Any = None, **bounds: Any) -> Any:
    """A field that may be left out. `default` is what then holds: the schema shows it, `decoding/params` applies it."""
    return Field(None, description=description, json_schema_extra={"default": default}, **bounds)


def field_of(params: type, name: str, **given: Any) -> Any:
    """The field of a params class: bounds, text and default as declared there. given: the wire's `default`, if it has
    another."""
    known = declared(params)[name]
    bounds = _bounds(known.mark(Offered) or known.mark(Within), known.off)
    default = given.get("default", known.default)
    if default is MISSING:
        return Field(description=known.text, **bounds)
    return option(known.text, None if default == () else default, **bounds)


def _bounds(within: Within | None, off: tuple[Any, ...]) -> dict[str, Any]:
    """As pydantic names them. A value that is off may lie below them."""
    if within is None:
        return {}
    bounds = {name: value for name, value in asdict(within).items() if math.isfinite(value)}
    return bounds | {"ge": min(within.ge, *off)} if off and within.ge > -math.inf else bounds


def at(wire: Wire, path: str) -> Any:
    """The value of a field, or of a field of an object: `at(wire, "edt.theta")`. None where anything is left out."""
    value: Any = wire
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def same(value: Any, other: Any) -> bool:
    """Equal, and not a number that merely equals a boolean."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
