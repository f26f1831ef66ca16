"""Bytes of a request -> a checked wire type. Everything that is wrong with them is an ApiError that shows no input.

pydantic's JSON parser refuses bad UTF-8, lone surrogates, NaN, deep nesting and endless integers; the standard
library's runs behind it for the one thing it lets through, a field named twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from server.errors import ApiError
from server.fields import unknown_field
from server.protocol import MUST_BE
from server.wire import Wire

Object = TypeVar("Object", bound=Wire)
Location = tuple[int | str, ...]


async def read_object(request: Request) -> dict[str, Any]:
    """The body as one JSON object. Raises ApiError 400 or 415."""
    _check_headers(request)
    body = await request.body()
    try:
        value = from_json(body, allow_inf_nan=False)
        json.loads(body, object_pairs_hook=_without_duplicates)
    except _DuplicateField:
        raise ApiError(400, "the body names a field twice", code="invalid_json") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def parse(wire: type[Object], fields: dict[str, Any]) -> Object:
    """The wire type of `fields`. Raises ApiError 400 naming the first bad field."""
    try:
        return wire.model_validate(fields)
    except ValidationError as failure:
        raise _bad_field(wire, failure) from None


class _DuplicateField(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _DuplicateField


def _check_headers(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "application/json").partition(";")
    charset = parameters.partition("charset=")[2].strip(' "').lower()
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8", "utf8"}:
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content encodings are not supported", code="unsupported_content_encoding")


def _bad_field(wire: type[Wire], failure: ValidationError) -> ApiError:
    errors = failure.errors(include_url=False, include_context=False, include_input=False)
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        return _unknown_nested(wire, location)
    forms = {**MUST_BE, **wire.FORMS}
    about = _description(location, forms)
    if about is not None:
        return ApiError(400, f"{about} must be {forms[about]}", param=about)
    path, field = _path(location), _field(location)
    if first["type"] == "missing":
        return ApiError(400, f"{path} is required", param=field)
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return ApiError(400, f"{path} {message}", param=field)


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
        known = known if isinstance(name, int) else _object(known.model_fields[name].annotation)
    return unknown_field(str(location[-1]), known.model_fields, parent)


def _object(annotation: Any) -> type[BaseModel]:
    """The object type somewhere inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_object(part) for part in get_args(annotation) if part is not type(None))
    return next(found, BaseModel)
