"""What GET /v1/strategies says, made from `table.py` and the wire types' JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from functools import cache
from typing import Any

from msgspec import UNSET, UnsetType

from decoding.contract.asking import Exclusion, Step, Strategy
from decoding.contract.params import Assisted, ContrastiveDecoding, Dexperts, Dola, Ensemble
from decoding.contract.params.declared import declared
from decoding.contract.plugins import NO_PLUGINS, Plugin
from server.served import Served
from server.settings.limits import Limits
from server.translate.table import (
    ENCODER_EXCLUSIONS,
    ENCODER_FIELDS,
    EXCLUSIONS,
    FILTERS,
    NEEDS,
    Table,
    table_of,
)
from server.wire.answers import Exclusive, JudgeEntry, Needed, PluginEntry, StepEntry, StrategyEntry, StrategyList
from server.wire.openapi import inlined
from server.wire.plugins import PLAIN, WireTypes

Schema = dict[str, Any]
TABLE = table_of(NO_PLUGINS)


def available(served: Served, table: Table = TABLE) -> list[Strategy]:
    """The strategies that the loaded model can run."""
    if not served.has_head:
        return []
    missing = [
        *([Assisted] if not served.has_draft else []),
        *([Dola] if served.num_layers == 0 else []),
        *([ContrastiveDecoding, Dexperts, Ensemble] if not served.beside else []),
    ]
    refused = refused_fields(served)
    return [each for each in table.strategies if each.params not in missing and refused.isdisjoint(each.when)]


def refused_fields(served: Served) -> frozenset[str]:
    """Those that have no meaning with the loaded model, whatever comes with them."""
    if served.encoder is None:
        return frozenset(ENCODER_FIELDS)
    return frozenset(key for exclusion in ENCODER_EXCLUSIONS if not exclusion.others for key in exclusion.keys)


def catalogue(served: Served, limits: Limits, wires: WireTypes = PLAIN) -> StrategyList:
    table, known = table_of(wires.chat.PLUGINS), properties(wires)
    can_run, refused = available(served, table), refused_fields(served)
    special = {name for each in table.strategies for name in each.own_fields} | {k for s in table.steps for k in s.keys}
    together = [each for each in ENCODER_EXCLUSIONS if each.others] if served.encoder is not None else []
    return StrategyList(
        data=[_strategy(each, refused, wires, is_available=each in can_run) for each in table.strategies],
        steps=[_step(step, wires, is_available=refused.isdisjoint(step.keys)) for step in table.steps],
        common=_schema((name for name in known if name not in special | refused), wires),
        needs=[Needed(need.key, need.needs) for need in NEEDS],
        exclusions=[_exclusive(each, each.others) for each in (*EXCLUSIONS, *together)],
        bounds={name: value for name, value in limits.model_dump(by_alias=True).items() if name.startswith("max_")},
        plugins=[_plugin(plugin) for plugin in table.plugins.plugins],
    )


@cache
def properties(wires: WireTypes = PLAIN) -> Mapping[str, Schema]:
    """Wire field -> its JSON schema, over both endpoints."""
    schemas = [inlined(wire.model_json_schema(), {})["properties"] for wire in (wires.chat, wires.completion)]
    return {**schemas[0], **schemas[1]}


def parameters(strategy: Strategy, wires: WireTypes = PLAIN) -> Schema:
    """JSON schema of a strategy's own fields, with the defaults that hold in it."""
    own = declared(strategy.params)
    choices = ["n"] if "n" in own else []
    schema = _schema([*choices, *strategy.own_fields], wires)
    shown = schema["properties"]
    for each in own.values():
        if each.path in shown and each.path not in strategy.when and each.default not in (MISSING, None):
            shown[each.path] = shown[each.path] | {"default": each.default}
    for name, value in strategy.fixed.items():
        shown[name] = shown[name] | {"const": value}
    return schema | {"required": [*strategy.requires]}


def combines(strategy: Strategy, refused: frozenset[str] = frozenset(), table: Table = TABLE) -> list[str]:
    """The steps that act in a strategy, but for those of refused fields."""
    shut = {key for exclusion in strategy.excludes for key in exclusion.keys} | set(strategy.own_fields) | refused
    if not strategy.draws:
        shut |= {"temperature", *FILTERS, "edt", "adapt", *table.warping_steps}
    return [step.name for step in table.steps if step.keys[0] not in shut]


def _strategy(strategy: Strategy, refused: frozenset[str], wires: WireTypes, *, is_available: bool) -> StrategyEntry:
    table = table_of(wires.chat.PLUGINS)
    return StrategyEntry(
        id=strategy.name,
        purpose=strategy.purpose,
        paper=strategy.paper or None,
        available=is_available,
        when=strategy.when,
        parameters=parameters(strategy, wires),
        combines_with=combines(strategy, refused, table),
        excludes=[_exclusive(each, strategy.when[:1]) for each in strategy.excludes],
        plugin=_owner(strategy.name, table),
    )


def _step(step: Step, wires: WireTypes, *, is_available: bool) -> StepEntry:
    owner = _owner(step.name, table_of(wires.chat.PLUGINS))
    return StepEntry(step.name, step.purpose, step.paper or None, is_available, _schema(step.keys, wires), plugin=owner)


def _owner(name: str, table: Table) -> str | UnsetType:
    plugin = table.plugins.owners.get(name)
    return UNSET if plugin is None else plugin.name


def _plugin(plugin: Plugin) -> PluginEntry:
    return PluginEntry(
        plugin.name,
        plugin.version,
        [strategy.name for strategy in plugin.strategies],
        [step.NAME for step in plugin.steps],
        [JudgeEntry(judge.NAME, judge.PURPOSE, judge.PAPER or None) for judge in plugin.judges],
    )


def _exclusive(exclusion: Exclusion, others: tuple[str, ...]) -> Exclusive:
    return Exclusive(exclusion.keys, others, exclusion.reason)


def _schema(names: Iterable[str], wires: WireTypes) -> Schema:
    known = properties(wires)
    return {"type": "object", "properties": {name: known[name] for name in names}}
