"""What GET /v1/strategies says, made from `table.py` and the wire types' JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from functools import cache
from typing import Any

from decoding.contract.params import Assisted, ContrastiveDecoding, Dexperts, Dola, Ensemble
from decoding.contract.params.declared import declared
from server.served import Served
from server.settings.limits import Limits
from server.translate.table import (
    ENCODER_EXCLUSIONS,
    ENCODER_FIELDS,
    EXCLUSIONS,
    FILTERS,
    NEEDS,
    STEPS,
    STRATEGIES,
    Exclusion,
    Step,
    Strategy,
)
from server.wire.answers import Exclusive, Needed, StepEntry, StrategyEntry, StrategyList
from server.wire.openapi import inlined
from server.wire.requests import ChatRequest, CompletionRequest

Schema = dict[str, Any]


def available(served: Served) -> list[Strategy]:
    """The strategies that the loaded model can run."""
    if not served.has_head:
        return []
    missing = [
        *([Assisted] if not served.has_draft else []),
        *([Dola] if served.num_layers == 0 else []),
        *([ContrastiveDecoding, Dexperts, Ensemble] if not served.beside else []),
    ]
    refused = refused_fields(served)
    return [strategy for strategy in STRATEGIES if strategy.params not in missing and refused.isdisjoint(strategy.when)]


def refused_fields(served: Served) -> frozenset[str]:
    """Those that have no meaning with the loaded model, whatever comes with them."""
    if served.encoder is None:
        return frozenset(ENCODER_FIELDS)
    return frozenset(key for exclusion in ENCODER_EXCLUSIONS if not exclusion.others for key in exclusion.keys)


def catalogue(served: Served, limits: Limits) -> StrategyList:
    can_run, refused = available(served), refused_fields(served)
    special = {name for strategy in STRATEGIES for name in strategy.own_fields} | {key for s in STEPS for key in s.keys}
    together = [each for each in ENCODER_EXCLUSIONS if each.others] if served.encoder is not None else []
    return StrategyList(
        data=[_strategy(strategy, refused, is_available=strategy in can_run) for strategy in STRATEGIES],
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


def parameters(strategy: Strategy) -> Schema:
    """JSON schema of a strategy's own fields, with the defaults that hold in it."""
    own = declared(strategy.params)
    choices = ["n"] if "n" in own else []
    schema = _schema([*choices, *strategy.own_fields])
    shown = schema["properties"]
    for each in own.values():
        if each.path in shown and each.path not in strategy.when and each.default not in (MISSING, None):
            shown[each.path] = shown[each.path] | {"default": each.default}
    for name, value in strategy.fixed.items():
        shown[name] = shown[name] | {"const": value}
    return schema | {"required": [*strategy.requires]}


def combines(strategy: Strategy, refused: frozenset[str] = frozenset()) -> list[str]:
    """The steps that act in a strategy, but for those of refused fields."""
    shut = {key for exclusion in strategy.excludes for key in exclusion.keys} | set(strategy.own_fields) | refused
    if not strategy.draws:
        shut |= {"temperature", *FILTERS, "edt", "adapt"}
    return [step.name for step in STEPS if step.keys[0] not in shut]


def _strategy(strategy: Strategy, refused: frozenset[str], *, is_available: bool) -> StrategyEntry:
    return StrategyEntry(
        id=strategy.name,
        purpose=strategy.purpose,
        paper=strategy.paper or None,
        available=is_available,
        when=strategy.when,
        parameters=parameters(strategy),
        combines_with=combines(strategy, refused),
        excludes=[_exclusive(each, strategy.when[:1]) for each in strategy.excludes],
    )


def _step(step: Step, *, is_available: bool) -> StepEntry:
    return StepEntry(step.name, step.purpose, step.paper or None, is_available, _schema(step.keys))


def _exclusive(exclusion: Exclusion, others: tuple[str, ...]) -> Exclusive:
    return Exclusive(exclusion.keys, others, exclusion.reason)


def _schema(names: Iterable[str]) -> Schema:
    return {"type": "object", "properties": {name: properties()[name] for name in names}}
