"""Other people's strategies, token-level steps and judges, as both processes know them: free of torch.

A plugin is what a file or module calls PLUGIN. Which are loaded is the operator's word alone (`plugin_loading.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from decoding.contract.asking import Strategy
from decoding.contract.params import PARAMS, StrategyParams
from decoding.contract.params.declared import declared
from decoding.contract.params.plugin import PluginStep, PluginStrategy
from decoding.contract.params.sampling import RANKINGS

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class PluginError(ValueError):
    """A plugin that cannot be used: its name and the reason."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished choice, for a judge. text: without the end or the stop sequence that ended it. logprobs: of its
    tokens, the model's own."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: bytes


class Judge:
    """Ranks the choices of best_of: `best_of_rank` names it. What it needs of torch it imports where it judges."""

    NAME: str
    PURPOSE: str
    PAPER: str = ""

    def scores(self, prompt: bytes, candidates: Sequence[Candidate]) -> Sequence[float]:
        """A score for each, the higher the better; the earlier one wins among equals."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Plugin:
    """name and version are shown in answers and at GET /v1/strategies."""

    name: str
    version: str
    strategies: tuple[Strategy, ...] = ()
    steps: tuple[type[PluginStep], ...] = ()
    judges: tuple[Judge, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of all that it brings."""
        return [
            *(strategy.name for strategy in self.strategies),
            *(step.NAME for step in self.steps),
            *(judge.NAME for judge in self.judges),
        ]


@dataclass(frozen=True, eq=False)
class Plugins:
    """All that are loaded."""

    plugins: tuple[Plugin, ...] = ()

    def __post_init__(self) -> None:
        """Raises PluginError where one cannot be used, or not beside another."""
        taken = dict.fromkeys((*PARAMS, *RANKINGS), "polydecode")
        for at, plugin in enumerate(self.plugins):
            if plugin.name in [other.name for other in self.plugins[:at]]:
                raise PluginError(f"plugin {plugin.name}: another one has that name")
            for problem in _problems(plugin):
                raise PluginError(f"plugin {plugin.name}: {problem}")
            for name in plugin.names:
                if name in taken:
                    raise PluginError(f"plugin {plugin.name}: {name} is a name of {taken[name]}")
                taken[name] = f"plugin {plugin.name}"

    @cached_property
    def strategies(self) -> tuple[Strategy, ...]:
        return tuple(strategy for plugin in self.plugins for strategy in plugin.strategies)

    @cached_property
    def params(self) -> Mapping[str, type[StrategyParams]]:
        """By strategy's name, ours as well."""
        return {**PARAMS, **{strategy.name: strategy.params for strategy in self.strategies}}

    @cached_property
    def steps(self) -> Mapping[str, type[PluginStep]]:
        return {step.NAME: step for plugin in self.plugins for step in plugin.steps}

    @cached_property
    def judges(self) -> Mapping[str, Judge]:
        return {judge.NAME: judge for plugin in self.plugins for judge in plugin.judges}

    @cached_property
    def versions(self) -> Mapping[str, str]:
        return {plugin.name: plugin.version for plugin in self.plugins}

    @cached_property
    def owners(self) -> Mapping[str, Plugin]:
        """By the name of a strategy, step or judge."""
        return {name: plugin for plugin in self.plugins for name in plugin.names}


NO_PLUGINS = Plugins()


def _problems(plugin: Plugin) -> Iterator[str]:
    names = [plugin.name, *plugin.names]
    yield from (f"{name!r} is no name: small letters, digits and _" for name in names if not _NAME.fullmatch(name))
    if not plugin.version:
        yield "it has no version"
    for strategy in plugin.strategies:
        if not issubclass(strategy.params, PluginStrategy):
            yield f"the params of {strategy.name} are no PluginStrategy"
        elif strategy.name != strategy.params.NAME:
            yield f"the params of {strategy.name} have another NAME"
        elif not strategy.when:
            yield f"nothing asks for {strategy.name}: its `when` is empty"
    for owner in (*(strategy.params for strategy in plugin.strategies), *plugin.steps):
        bare = [name for name, each in declared(owner).items() if not each.text]
        yield from (f"field {name} of {owner.__name__} says nothing: Says(…)" for name in bare)
