"""Two servers, measured in turn: A B, A B, … with the same prompts within a pair and new ones in the next.

Ratios are taken pair by pair, so what drifts on the machine drifts for both; the median of them is the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from loadtest.contender import Contender
from loadtest.scenario import Scenario
from loadtest.statistics import Percentiles, Summary

Play = Callable[[str, Scenario, int], Awaitable[Summary]]
"""Plays a scenario with a seed against the contender of that label: A, B, or in a table its name."""


@dataclass(frozen=True, slots=True)
class Turn:
    summary: Summary
    seconds_to_ready: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    seed: int
    a: Turn
    b: Turn


@dataclass(frozen=True, slots=True)
class Comparison:
    scenario: Scenario
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a turn; None where the turn has none."""

    name: str
    unit: Literal["tok/s", "req/s", "ms", "s", "tokens"]
    better: Literal["higher", "lower", "equal"]
    read: Callable[[Turn], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


def _milliseconds(percentiles: Percentiles | None) -> float | None:
    return None if percentiles is None else percentiles.p50 * 1000


FIGURES = (
    Figure("output throughput", "tok/s", "higher", lambda turn: turn.summary.output_tokens_per_second),
    Figure("request throughput", "req/s", "higher", lambda turn: turn.summary.requests_per_second),
    Figure("time to first token, p50", "ms", "lower", lambda turn: _milliseconds(turn.summary.time_to_first_token)),
    Figure("inter-token latency, p50", "ms", "lower", lambda turn: _milliseconds(turn.summary.inter_token_latency)),
    Figure("time per output token, p50", "ms", "lower", lambda turn: _milliseconds(turn.summary.time_per_output_token)),
    Figure("end to end, p50", "ms", "lower", lambda turn: _milliseconds(turn.summary.end_to_end)),
    Figure("output tokens", "tokens", "equal", lambda turn: turn.summary.completion_tokens),
    Figure("time to ready", "s", "lower", lambda turn: turn.seconds_to_ready),
)


def ratio(figure: Figure, a: Turn, b: Turn) -> float | None:
    """A / B; None where one side has no such figure or B's is zero."""
    of_a, of_b = figure.read(a), figure.read(b)
    return None if of_a is None or not of_b else of_a / of_b


def spread(figure: Figure, pairs: tuple[Pair, ...]) -> Spread | None:
    """The ratios' median and range; None if no pair has one."""
    ratios = [r for pair in pairs if (r := ratio(figure, pair.a, pair.b)) is not None]
    return Spread(median(ratios), min(ratios), max(ratios)) if ratios else None


async def compare(scenario: Scenario, a: Contender, b: Contender, play: Play, seeds: tuple[int, ...]) -> Comparison:
    """One pair a seed. The contenders are open already, and stay open."""
    pairs = []
    for seed in seeds:
        turn_a = await take_turn("A", a, play, scenario, seed)
        turn_b = await take_turn("B", b, play, scenario, seed)
        pairs.append(Pair(seed, turn_a, turn_b))
    return Comparison(scenario, tuple(pairs))


async def take_turn(label: str, contender: Contender, play: Play, scenario: Scenario, seed: int) -> Turn:
    """Wakes the contender, plays, and puts it out of the others' way."""
    async with contender.turn() as seconds_to_ready:
        return Turn(await play(label, scenario, seed), seconds_to_ready)
