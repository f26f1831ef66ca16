"""What GET /v1/strategies says, made from the tables of `combinations.py` and the wire types' JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from typing import Any

from decoding.params import Assisted, Dola
from server.combinations import ENCODER_EXCLUSIONS, EXCLUSIONS, FILTERS, METHODS, NEEDS, STEPS, Exclusion, Method, Step
from server.limits import Limits
from server.openapi import inlined
from server.protocol import ChatRequest, CompletionRequest
from server.replies import Exclusive, Needed, StepEntry, StrategyEntry, StrategyList
from server.served import Served

Schema = dict[str, Any]


def available(served: Served) -> list[Method]:
    """The strategies that the loaded model can run."""
    missing = [
        *([Assisted] if not served.has_draft else []),
        *([Dola] if served.num_layers == 0 else []),
    ]
    exclusions = ENCODER_EXCLUSIONS if served.encoder is not None else ()
    excluded = {key for exclusion in exclusions for key in exclusion.keys}
    return [method for method in METHODS if method.params not in missing and not excluded.intersection(method.when)]


def catalogue(served: Served, limits: Limits) -> StrategyList:
    can_run = available(served)
    special = {name for method in METHODS for name in method.own_fields} | {key for s in STEPS for key in s.keys}
    return StrategyList(
        data=[_strategy(method, is_available=method in can_run) for method in METHODS],
        steps=[_step(step) for step in STEPS],
        common=_schema(name for name in properties() if name not in special),
        needs=[Needed(need.key, need.needs) for need in NEEDS],
        exclusions=[_exclusive(each, each.others) for each in EXCLUSIONS],
        bounds={name: value for name, value in asdict(limits).items() if name.startswith("max_")},
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


def combines(method: Method) -> list[str]:
    """The steps that act in a strategy."""
    shut = {key for exclusion in method.excludes for key in exclusion.keys} | set(method.own_fields)
    if not method.draws:
        shut |= {"temperature", *FILTERS, "edt", "adapt"}
    return [step.name for step in STEPS if step.keys[0] not in shut]


def _strategy(method: Method, *, is_available: bool) -> StrategyEntry:
    return StrategyEntry(
        id=method.name,
        purpose=method.purpose,
        paper=method.paper or None,
        available=is_available,
        when=method.when,
        parameters=parameters(method),
        combines_with=combines(method),
        excludes=[_exclusive(each, method.when[:1]) for each in method.excludes],
    )


def _step(step: Step) -> StepEntry:
    return StepEntry(step.name, step.purpose, step.paper or None, _schema(step.keys))


def _exclusive(exclusion: Exclusion, others: tuple[str, ...]) -> Exclusive:
    return Exclusive(exclusion.keys, others, exclusion.reason)


def _schema(names: Iterable[str]) -> Schema:
    return {"type": "object", "properties": {name: properties()[name] for name in names}}
