"""Parameters to try a plugin's strategies and steps with."""

from __future__ import annotations

import random
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from decoding.contract.params.declared import Declared, FromText, IsToken, Within, declared
from decoding.contract.params.invalid import InvalidParam

MAX_ROWS = 8
TRIES = 200


class NoSample(ValueError):
    """No parameters were found that the plugin's own checks take."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """token_bytes: of each id, as far as known."""

    size: int
    token_bytes: Sequence[bytes]


def sample(rng: random.Random, kind: type[Any], vocabulary: Vocabulary) -> Any:
    """Params that the plugin offers to be tried, else random ones within what it declares. Raises NoSample."""
    for _ in range(TRIES):
        try:
            params = kind.sample(rng) or kind(**dict(_values(rng, kind, vocabulary)))
            if getattr(params, "max_rows", 1) <= MAX_ROWS:
                return params
        except InvalidParam:
            continue
    raise NoSample(f"{kind.__name__}: no random parameters are valid; give it a classmethod `sample(rng)`")


def _values(rng: random.Random, kind: type, vocabulary: Vocabulary) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for name, each in declared(kind).items():
        if each.path == "n":
            yield name, rng.choice([1, 1, 2, 3])
        elif each.default is MISSING or rng.random() < 0.6:
            yield name, _value(rng, hints[name], each, vocabulary)


def _value(rng: random.Random, hint: Any, each: Declared, vocabulary: Vocabulary) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(rng, inner[0], each, vocabulary)
    if origin is Literal:
        return rng.choice(inner)
    if origin in (Union, types.UnionType):
        return rng.choice([None, _value(rng, next(i for i in inner if i is not types.NoneType), each, vocabulary)])
    if origin is tuple:
        return tuple(_value(rng, inner[0], each, vocabulary) for _ in range(rng.randrange(1, 4)))
    if hint is bool:
        return rng.random() < 0.5
    if hint is str:
        return _text(rng, vocabulary)
    if each.mark(FromText) or IsToken() in (*each.marks, *each.inner):
        return rng.randrange(vocabulary.size)
    return _number(rng, hint, each)


def _number(rng: random.Random, kind: type, each: Declared) -> Any:
    """Within the bounds, and near the default: what is tried must come to an end."""
    within = each.bounds or Within()
    start = each.default if isinstance(each.default, int | float) else max(within.ge, min(within.le, 1.0))
    low, high = max(within.ge, within.gt, start - 4), min(within.le, within.lt, start + 4)
    if kind is int:
        return rng.randrange(int(low) + (within.gt == low), int(high) + (within.lt != high))
    return rng.uniform(low, high) if within.fault(low) is None else low + (high - low) * rng.uniform(0.01, 0.99)


def _text(rng: random.Random, vocabulary: Vocabulary) -> str:
    """Of a token or two, so that answers have it now and then."""
    table = [text for text in vocabulary.token_bytes if text.strip().isascii() and text.strip()] or [b"a"]
    return b"".join(rng.choice(table) for _ in range(rng.randrange(1, 3))).decode()
