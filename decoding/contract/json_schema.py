"""A JSON schema rewritten where llguidance would enforce something else than it says, or nothing at all.

llguidance keeps bounds as float64, cannot go down to -2**63, and takes 2023-02-29 for a date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

EXACT = 1 << 53
"""Integers up to here are float64s, each of them."""

LIMITS = {-(1 << 63): -(1 << 63) + 1024, (1 << 63) - 1: (1 << 63) - 1024, (1 << 64) - 1: (1 << 64) - 2048}
"""What generators write for "any int64" and "any uint64", and the next float64 inside. int64's upper limit itself stays
allowed (llguidance cannot write the others): nothing wrong is, and of int64 all but a thousand numbers are."""

_DAY = r"(?:0[1-9]|1\d|2[0-8])"
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_LEAP_YEAR}-02-29|\d{{4}}-(?:(?:0[1-9]|1[0-2])-{_DAY}|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
FORMATS = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}
"""RFC 3339, without leap seconds."""

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SCHEMAS = frozenset({"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"})
Step = str | int
Change = Callable[[dict[str, Any], tuple[Step, ...]], dict[str, Any]]


class Inexact(ValueError):
    """A keyword that can only be enforced nearly; `place` is where it stands."""

    def __init__(self, place: tuple[Step, ...], keyword: str) -> None:
        super().__init__(f"{keyword} is beyond what numbers here can hold")
        self.place = place
        self.keyword = keyword


def exact(schema: Any, *, is_lenient: bool) -> Any:
    """The schema as llguidance must be told it. Raises Inexact, unless lenient: then what is inexact is left out."""

    def told(part: dict[str, Any], place: tuple[Step, ...]) -> dict[str, Any]:
        out = dict(part)
        if out.get("format") in FORMATS and "pattern" not in out:
            out["pattern"] = FORMATS[out.pop("format")]
        return _with_exact_bounds(out, place, is_lenient=is_lenient)

    return rebuilt(schema, told)


def rebuilt(schema: Any, change: Change, place: tuple[Step, ...] = ()) -> Any:
    """The schema with `change(schema, place)` in place of each schema in it, the inner ones first."""
    if not isinstance(schema, dict):
        return schema
    inner = {
        key: _inner(key, value, lambda part, step: rebuilt(part, change, (*place, *step)))
        for key, value in schema.items()
    }
    return change(inner, place)


def parts(schema: Any, place: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Mapping[str, Any]]]:
    """Every schema in it, itself first, and where it stands."""
    if isinstance(schema, dict):
        yield place, schema
        found: list[tuple[Any, tuple[Step, ...]]] = []
        for key, value in schema.items():
            _inner(key, value, lambda part, step: found.append((part, step)))
        for part, step in found:
            yield from parts(part, (*place, *step))


def _inner(key: str, value: Any, change: Any) -> Any:
    """The value of a keyword, with `change(schema, steps to it)` in place of each schema in it."""
    if key in MAPS and isinstance(value, dict):
        return {name: change(part, (key, name)) for name, part in value.items()}
    if isinstance(value, list) and (key in LISTS or key == "items"):
        return [change(part, (key, i)) for i, part in enumerate(value)]
    return change(value, (key,)) if key in SCHEMAS else value


def _with_exact_bounds(schema: dict[str, Any], place: tuple[Step, ...], *, is_lenient: bool) -> dict[str, Any]:
    out, limits = dict(schema), []
    for keyword in BOUNDS:
        bound = out.get(keyword)
        if not isinstance(bound, int) or isinstance(bound, bool) or abs(bound) <= EXACT:
            continue
        if bound in LIMITS and not keyword.startswith("exclusive"):
            out[keyword] = LIMITS[bound]
            limits += [bound] if 0 < bound < 1 << 63 else []
        elif int(float(bound)) != bound or bound == -(1 << 63):
            if not is_lenient:
                raise Inexact(place, keyword)
            del out[keyword]
    if not limits or "multipleOf" in out:
        return out
    return {key: out.pop(key) for key in ("$defs", "definitions", "$schema") if key in out} | {
        "anyOf": [out, {"enum": limits}]
    }
