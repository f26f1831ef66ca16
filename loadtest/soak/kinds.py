"""What a soak sends, as data: requests that are good, bad, left by their client, read slowly, or too late.

The fields are polydecode's; they go over those of the target. To add a kind, add an entry to KINDS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import msgspec

from loadtest.prompt import WORDS
from loadtest.target import Target

Manner = Literal["whole", "slow", "leave"]
"""How the client reads: all there is, a few bytes at a time, or not to the end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`bodies`: sent as they are, one at random, in place of a prompt with `fields`."""

    name: str
    weight: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    manner: Manner = "whole"
    prompt_words: int = 24
    bodies: tuple[bytes, ...] = ()

    def body(self, target: Target, rng: Random) -> bytes:
        if self.bodies:
            return rng.choice(self.bodies)
        prompt = " ".join(rng.choices(WORDS, k=rng.randrange(1, 2 * self.prompt_words)))
        fields = {**target.body(prompt, 40), "seed": rng.randrange(1 << 32), **self.fields}
        return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


PLAIN: dict[str, Any] = {"stream": None, "stream_options": None}
_BAD = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe{}",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "max_tokens": 1e400}',
    b'{"prompt": "a", "n": true}',
    b'{"prompt": [-1]}',
    b'{"prompt": [99999999]}',
    b'{"prompt": "a", "no_such_field": 1}',
    b'{"prompt": "a", "num_beams": 4, "penalty_alpha": 0.6}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": ' + b"[" * 20000,
    b'{"prompt": ' + b"9" * 6000 + b"}",
)

KINDS = (
    Kind("stream", 6),
    Kind("plain", 3, PLAIN),
    Kind("sampled", 3, {"temperature": 1.0, "n": 3, "top_p": 0.9, "logprobs": 2}),
    Kind("beams", 2, {"num_beams": 4, "n": 2, **PLAIN}),
    Kind("long prompt", 1, {"max_tokens": 4}, prompt_words=150),
    Kind("left stream", 4, {"max_tokens": 200}, "leave"),
    Kind("left answer", 2, {"max_tokens": 200, **PLAIN}, "leave"),
    Kind("slow reader", 2, {"n": 4, "temperature": 1.0}, "slow"),
    Kind("too late", 1, {"timeout": 0.05, "max_tokens": 200, **PLAIN}),
    Kind("bad", 4, bodies=_BAD),
)
BURST = Kind("burst", 0, {"max_tokens": 2, **PLAIN}, prompt_words=4)
"""Sent in greater numbers than the queue holds."""
