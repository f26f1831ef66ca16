"""How cost grows: a scenario played again and again with one thing of it larger each time. Data, as in scenario.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.scenario import Closed, Scenario, Shape
from loadtest.statistics import Summary


@dataclass(frozen=True, slots=True)
class Curve:
    """`grown(x)` is the scenario at x, what `axis` counts."""

    name: str
    description: str
    axis: str
    values: tuple[int, ...]
    grown: Callable[[int], Scenario]


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Growth:
    """A curve as measured."""

    curve: Curve
    points: tuple[Point, ...]


def _streams(x: int) -> Scenario:
    shape = Shape(prompt_words=32, max_tokens=64)
    return Scenario(f"streams={x}", "", Closed(x), (shape,), requests=max(x, 2), warmup=min(x, 8))


def _context(x: int) -> Scenario:
    shape = Shape(prompt_words=x, max_tokens=32)
    return Scenario(f"words={x}", "", Closed(2), (shape,), requests=2, warmup=0)


def _beams(x: int) -> Scenario:
    shape = Shape(prompt_words=32, max_tokens=64, beams=x)
    return Scenario(f"beams={x}", "", Closed(2), (shape,), requests=4, warmup=1)


CURVES = (
    Curve(
        name="streams",
        description="prompts of 32 words, 64 tokens out, more and more at once",
        axis="streams",
        values=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        grown=_streams,
    ),
    Curve(
        name="context",
        description="longer and longer prompts, 32 tokens out, 2 at once",
        axis="words in the prompt",
        values=(128, 256, 512, 1024, 2048, 4096, 8000),  # a word is a token; the embedded model sees 8192
        grown=_context,
    ),
    Curve(
        name="beams",
        description="wider and wider beam search, all beams returned, 64 tokens out, 2 requests at once",
        axis="beams",
        values=(1, 2, 4, 8, 16),
        grown=_beams,
    ),
)


def find(name: str) -> Curve:
    """The curve of that name; LookupError names those there are."""
    for curve in CURVES:
        if curve.name == name:
            return curve
    raise LookupError(f"no curve {name!r}; there are {', '.join(c.name for c in CURVES)}")
