"""Every load there is, as data: what arrives, how, and how long the answers are.

A scenario knows nothing of servers, HTTP or clocks; `run.py` plays it. To add one, add an entry to SCENARIOS.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request. `shared_words` come first and are the same for every request of the run.

    beams: 1 is greedy; more is beam search of that width which returns them all, so that usage counts every row.
    """

    prompt_words: int
    max_tokens: int
    shared_words: int = 0
    weight: float = 1.0
    beams: int = 1


@dataclass(frozen=True, slots=True)
class Closed:
    """`streams` requests at once: each stream sends its next request when its last answer has ended."""

    streams: int


@dataclass(frozen=True, slots=True)
class Open:
    """Poisson arrivals at `rate` requests a second, whatever the server manages."""

    rate: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """`requests` are measured after `warmup` unmeasured ones; shapes are drawn by weight."""

    name: str
    description: str
    load: Closed | Open
    shapes: tuple[Shape, ...]
    requests: int
    warmup: int


SCENARIOS = (
    Scenario(
        name="single",
        description="one stream, 128 tokens out: the latency of a lone user",
        load=Closed(streams=1),
        shapes=(Shape(prompt_words=32, max_tokens=128),),
        requests=4,
        warmup=1,
    ),
    Scenario(
        name="streams-16",
        description="16 streams, 128 tokens out",
        load=Closed(streams=16),
        shapes=(Shape(prompt_words=32, max_tokens=128),),
        requests=32,
        warmup=16,
    ),
    Scenario(
        name="streams-64",
        description="64 streams, 64 tokens out",
        load=Closed(streams=64),
        shapes=(Shape(prompt_words=32, max_tokens=64),),
        requests=128,
        warmup=64,
    ),
    Scenario(
        name="beams",
        description="4 requests at once, beam search of width 4, 64 tokens out each",
        load=Closed(streams=4),
        shapes=(Shape(prompt_words=32, max_tokens=64, beams=4),),
        requests=8,
        warmup=4,
    ),
    Scenario(
        name="shared-prefix",
        description="16 streams whose prompts share 600 words, 64 tokens out",
        load=Closed(streams=16),
        shapes=(Shape(prompt_words=16, max_tokens=64, shared_words=600),),
        requests=32,
        warmup=2,
    ),
    Scenario(
        name="prefill",
        description="prompts of 1200 words, 1 token out, 2 at once",
        load=Closed(streams=2),
        shapes=(Shape(prompt_words=1200, max_tokens=1),),
        requests=8,
        warmup=2,
    ),
    Scenario(
        name="mixed",
        description="open loop, 1 request a second: chat turns, short answers, a few long prompts",
        load=Open(rate=1.0),
        shapes=(
            Shape(prompt_words=32, max_tokens=64, weight=6),
            Shape(prompt_words=120, max_tokens=16, weight=3),
            Shape(prompt_words=600, max_tokens=32, weight=1),
        ),
        requests=40,
        warmup=4,
    ),
)


STANDARD = ("single", "streams-16", "streams-64", "shared-prefix", "prefill", "beams")
"""Those of a table."""


def find(name: str) -> Scenario:
    """The scenario of that name; LookupError names those there are."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise LookupError(f"no scenario {name!r}; there are {', '.join(s.name for s in SCENARIOS)}")
