"""What every object of a request body obeys, and the types that its fields are made of.

Strict: no number from a string or a boolean, no NaN, no unknown field. null means the default everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

MAX_INT = 2**31 - 1

Count = Annotated[int, Field(ge=0, le=MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
# Seconds. Nothing can be answered in less than the first, hardly anything in less than the schema's
Deadline = Annotated[
    float, Field(ge=0.001, le=86400), WithJsonSchema({"type": "number", "minimum": 1, "maximum": 86400})
]
Probability = Annotated[float, Field(ge=0, le=1)]


class Wire(BaseModel):
    """An object of a request body.

    FORMS: completes "<field> must be …" for unions and maps, whose types pydantic would name by its own names.
    """

    FORMS: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def option(description: str, default: object = None) -> Any:
    """A field that may be left out. `default` is what then holds: the schema shows it, `decoding/params` applies it."""
    return Field(None, description=description, json_schema_extra={"default": default})  # type: ignore[dict-item]


def at(wire: Wire, path: str) -> Any:
    """The value of a field, or of a field of an object: `at(wire, "edt.theta")`. None where anything is left out."""
    value: Any = wire
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def same(value: Any, other: Any) -> bool:
    """Equal, and not a number that merely equals a boolean."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
