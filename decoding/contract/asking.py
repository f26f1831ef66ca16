"""How a request asks for a strategy, and what does not go together: the rows of the table at GET /v1/strategies.

A key is a wire field that asks for something, or `field=value` for the few fields whose values mean different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decoding.contract.params.base import StrategyParams
from decoding.contract.params.declared import declared

GREEDY_KEYS = ("temperature=0", "do_sample=false", "num_beams=1", "penalty_alpha=0")
"""The last two: a width or a weight that is given and leaves nothing of its search but greedy decoding."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Each of `keys` has no meaning with each of `others` (of a Strategy: with it), unless one of `unless` is there."""

    keys: tuple[str, ...]
    reason: str
    others: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy as requests ask for it: by all keys of `when`, unless another one asks for more of the same.

    also: wire fields that no params field bears.
    requires: keys it cannot do without.
    fixed: fields whose value names it.
    rows: the field that sets how many rows it takes.
    draws: whether tokens are drawn, so that temperature and filters act.
    warped_by: the key with which those act though nothing is drawn.
    """

    name: str
    params: type[StrategyParams]
    purpose: str
    paper: str
    when: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rows: str = "n"
    draws: bool = True
    warped_by: str = ""
    excludes: tuple[Exclusion, ...] = ()

    @property
    def paths(self) -> dict[str, str]:
        """Params field -> wire path."""
        return {each.name: each.path for each in declared(self.params).values()}

    @property
    def own_fields(self) -> tuple[str, ...]:
        """The top-level wire fields that are its own."""
        names = (*self.fixed, *(path.partition(".")[0] for path in self.paths.values()), *self.also)
        return tuple(name for name in dict.fromkeys(names) if name != "n")


@dataclass(frozen=True, slots=True)
class Step:
    """A token-level step, which acts on each row of whatever strategy runs. keys[0] asks for it."""

    name: str
    keys: tuple[str, ...]
    purpose: str
    paper: str
