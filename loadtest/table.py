"""Any number of servers, measured in turn: A B C, A B C, … with the same prompts within a round, new ones in the next.

As in a comparison of two, ratios are taken within a round, so what drifts on the machine drifts for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from loadtest.compare import FIGURES, Figure, Play, Turn, ratio, take_turn
from loadtest.contender import Contender
from loadtest.scenario import Scenario

_OUTPUT, _REQUESTS = FIGURES[:2]


@dataclass(frozen=True, slots=True)
class Column:
    """What came of one scenario: a turn a round for each contender that could play it."""

    scenario: Scenario
    turns: Mapping[str, tuple[Turn, ...]]

    @property
    def figure(self) -> Figure:
        """What the table shows: tokens a second, or requests where an answer is one token."""
        return _REQUESTS if all(shape.max_tokens == 1 for shape in self.scenario.shapes) else _OUTPUT

    def median(self, name: str, figure: Figure) -> float | None:
        """None if the contender did not play, or no turn of it has that figure."""
        values = [value for turn in self.turns.get(name, ()) if (value := figure.read(turn)) is not None]
        return median(values) if values else None

    def ratio(self, name: str, against: str) -> float | None:
        """The median over the rounds of the one's rate by the other's; None where one of them has none."""
        rounds = zip(self.turns.get(name, ()), self.turns.get(against, ()), strict=False)
        ratios = [r for turn, other in rounds if (r := ratio(self.figure, turn, other)) is not None]
        return median(ratios) if ratios else None


async def tabulate(
    scenario: Scenario, contenders: Mapping[str, Contender], play: Play, seeds: tuple[int, ...]
) -> Column:
    """One round a seed. The contenders are open already, and stay open."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    for seed in seeds:
        for name, contender in contenders.items():
            turns[name].append(await take_turn(name, contender, play, scenario, seed))
    return Column(scenario, {name: tuple(taken) for name, taken in turns.items()})
