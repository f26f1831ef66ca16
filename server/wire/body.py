"""Bytes of a request -> a checked wire type. Everything that is wrong with them is an ApiError that shows no input.

pydantic's JSON parser refuses bad UTF-8, lone surrogates, NaN, deep nesting and endless integers. The one thing it lets
through is a field named twice: then the object has fewer fields than its bytes name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from server.errors import ApiError
from server.settings.limits import Limits
from server.wire.base import Wire
from server.wire.body_shape import BodyShape, shape_of
from server.wire.unknown import LaterFields, sort_fields, unknown_field
from server.work_queue import WorkQueue

Object = TypeVar("Object", bound=Wire)
Read = TypeVar("Read")
Location = tuple[int | str, ...]
Ignored = Sequence[str]
"""The fields that were accepted without effect."""


# pydantic's kinds of error whose messages name Python's types, or ours
_IN_JSON = {
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "none_required": "must be null",
    "too_short": "must not be empty",
    "too_long": "must be empty",
}
INLINE_BYTES = 64 << 10  # read in a few milliseconds, however many values they are
_LARGE = WorkQueue("body reading", 2, max_waiting=256)


async def read_body(request: Request, limits: Limits, read: Callable[[dict[str, Any]], Read]) -> Read:
    """What `read` makes of the body, one JSON object; of a large one, in a thread. Raises ApiError 400, 413 or 429."""
    body = b"".join([piece async for piece in request.stream()])  # `request.body` would keep it until the answer ends
    if len(body) <= INLINE_BYTES:
        return read(_object_in(body, limits))
    return await _LARGE.run(lambda: read(_object_in(body, limits)))


def parse(
    wire: type[Object], body: Mapping[str, Any], later: LaterFields = MappingProxyType({})
) -> tuple[Object, Ignored]:
    """The wire type of a body. Raises ApiError 400 naming the first bad field, by the name that it was sent as."""
    fields = sort_fields(body, wire.model_fields.keys() - later.keys(), later)
    try:
        return wire.model_validate(fields.known), fields.ignored
    except ValidationError as failure:
        raise _as_sent(_bad_field(wire, failure), fields.sent_as) from None


def _object_in(body: bytes, limits: Limits) -> dict[str, Any]:
    shape = shape_of(body, limits.max_body_parts)
    _check_shape(shape, limits)
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    if len(value) != shape.num_fields and _num_fields(value) != shape.num_fields:
        raise ApiError(400, "the body names a field twice", code="invalid_json")
    return value


def _check_shape(shape: BodyShape, limits: Limits) -> None:
    if shape.num_parts > limits.max_body_parts:
        message = f"the body holds more than {limits.max_body_parts} strings, lists and objects"
        raise ApiError(413, message, code="body_too_large")
    if shape.num_values > limits.max_body_values:
        raise ApiError(413, f"the body holds more than {limits.max_body_values} values", code="body_too_large")


def _num_fields(value: dict[str, Any] | list[Any]) -> int:
    """Of all objects in it."""
    held = value.values() if isinstance(value, dict) else value
    own = len(value) if isinstance(value, dict) else 0
    return own + sum(_num_fields(inner) for inner in held if isinstance(inner, dict | list))


def _bad_field(wire: type[Wire], failure: ValidationError) -> ApiError:
    errors = failure.errors(include_url=False, include_context=False, include_input=False)
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    location = first["loc"]
    about = _description(location, wire.FORMS)
    if about is not None:
        return ApiError(400, f"{about} must be {wire.FORMS[about]}", param=about)
    if first["type"] == "extra_forbidden":
        return _unknown_nested(wire, location)
    path, field = _path(location), _field(location)
    if first["type"] == "missing":
        return ApiError(400, f"{path} is required", param=field)
    return ApiError(400, f"{path} {_problem(first['type'], first['msg'])}", param=field)


def _as_sent(error: ApiError, sent_as: Mapping[str, str]) -> ApiError:
    ours = next((path for path in sent_as if f"{error.param}.".startswith(f"{path}.")), None)
    if ours is None or error.param is None:
        return error
    message = error.message.replace(ours, sent_as[ours], 1)
    return ApiError(400, message, param=error.param.replace(ours, sent_as[ours], 1), code=error.code)


def _problem(kind: str, message: str) -> str:
    """What pydantic found, in JSON's words."""
    return _IN_JSON.get(kind) or re.sub("^Value error, ", "", re.sub("^(Input|String) should", "must", message))


def _description(location: Location, forms: Mapping[str, str]) -> str | None:
    """The field of that path whose form is described as a whole."""
    paths = (".".join(map(str, location[:end])) for end in range(1, len(location) + 1))
    return next((path for path in paths if path in forms), None)


def _field(location: Location) -> str:
    """The field to blame: edt.theta, but messages rather than messages[3].content."""
    return ".".join(str(step) for step in takewhile(lambda step: isinstance(step, str), location))


def _path(location: Location) -> str:
    """messages[3].content. Unions and maps are described as a whole, so that every string here is a name of ours."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).removeprefix(".")


def _unknown_nested(wire: type[BaseModel], location: Location) -> ApiError:
    parent = f"{_path(location[:-1])}." if len(location) > 1 else ""
    known: Any = wire
    for name in location[:-1]:
        inner = known.model_fields.get(name)
        known = known if isinstance(name, int) else _object(inner.annotation if inner else None)
    return unknown_field(str(location[-1]), known.model_fields, parent)


def _object(annotation: Any) -> type[BaseModel]:
    """The object type somewhere inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_object(part) for part in get_args(annotation) if part is not type(None))
    return next((each for each in found if each is not BaseModel), BaseModel)
