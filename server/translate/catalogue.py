"""What GET /v1/strategies says, made from the tables of `combinations.py` and the wire types' JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from decoding.contract.params import Assisted, Dola
from server.served import Served
from server.settings.limits import Limits
from server.translate.table import (
    ENCODER_EXCLUSIONS,
    ENCODER_FIELDS,
    EXCLUSIONS,
    FILTERS,
    METHODS,
    NEEDS,
    STEPS,
    Exclusion,
    Method,
    Step,
)
from server.wire.answers import Exclusive, Needed, StepEntry, StrategyEntry, StrategyList
from server.wire.openapi import inlined
from server.wire.requests import ChatRequest, CompletionRequest

Schema = dict[str, Any]


def available(served: Served) -> list[Method]:
    """The strategies that the loaded model can run."""
    if not served.has_head:
        return []
    missing = [
        *([Assisted] if not served.has_draft else []),
        *([Dola] if served.num_layers == 0 else []),
    ]
    refused = refused_fields(served)
    return [method for method in METHODS if method.params not in missing and refused.isdisjoint(method.when)]


def refused_fields(served: Served) -> frozenset[str]:
    """Those that have no meaning with the loaded model, whatever comes with them."""
    if served.encoder is None:
        return frozenset(ENCODER_FIELDS)
    return frozenset(key for exclusion in ENCODER_EXCLUSIONS if not exclusion.others for key in exclusion.keys)


def catalogue(served: Served, limits: Limits) -> StrategyList:
    can_run, refused = available(served), refused_fields(served)
    special = {name for method in METHODS for name in method.own_fields} | {key for s in STEPS for key in s.keys}
    together = [each for each in ENCODER_EXCLUSIONS if each.others] if served.encoder is not None else []
    return StrategyList(
        data=[_strategy(method, refused, is_available=method in can_run) for method in METHODS],
        steps=[_step(step, is_available=refused.isdisjoint(step.keys)) for step in STEPS],
        common=_schema(name for name in properties() if name not in special | refused),
        needs=[Needed(need.key, need.needs) for need in NEEDS],
        exclusions=[_exclusive(each, each.others) for each in (*EXCLUSIONS, *together)],
        bounds={name: value for name, value in limits.model_dump(by_alias=True).items() if name.startswith("max_")},
    )


@cache
def properties() -> Mapping[str, Schema]:
    """Wire field -> its JSON schema, over both endpoints."""
    schemas = [inlined(wire.model_json_schema(), {})["properties"] for wire in (ChatRequest, CompletionRequest)]
    return {**schemas[0], **schemas[1]}


def parameters(method: Method) -> Schema:
    """JSON schema of a strategy's own fields, with the defaults that hold in it."""
    choices = ["n"] if any(each.name == "n" for each in fields(method.params)) else []
    schema = _schema([*choices, *method.own_fields])
    shown = schema["properties"]
    for each in fields(method.params):
        path = method.paths[each.name]
        if path in shown and path not in method.when and each.default not in (MISSING, None):
            shown[path] = shown[path] | {"default": each.default}
    for name, value in method.fixed.items():
        shown[name] = shown[name] | {"const": value}
    return schema | {"required": [*method.requires]}


def combines(method: Method, refused: frozenset[str] = frozenset()) -> list[str]:
    """The steps that act in a strategy, but for those of refused fields."""
    shut = {key for exclusion in method.excludes for key in exclusion.keys} | set(method.own_fields) | refused
    if not method.draws:
        shut |= {"temperature", *FILTERS, "edt", "adapt"}
    return [step.name for step in STEPS if step.keys[0] not in shut]


def _strategy(method: Method, refused: frozenset[str], *, is_available: bool) -> StrategyEntry:
    return StrategyEntry(
        id=method.name,
        purpose=method.purpose,
        paper=method.paper or None,
        available=is_available,
        when=method.when,
        parameters=parameters(method),
        combines_with=combines(method, refused),
        excludes=[_exclusive(each, method.when[:1]) for each in method.excludes],
    )


def _step(step: Step, *, is_available: bool) -> StepEntry:
    return StepEntry(step.name, step.purpose, step.paper or None, is_available, _schema(step.keys))


def _exclusive(exclusion: Exclusion, others: tuple[str, ...]) -> Exclusive:
    return Exclusive(exclusion.keys, others, exclusion.reason)


def _schema(names: Iterable[str]) -> Schema:
    return {"type": "object", "properties": {name: properties()[name] for name in names}}
