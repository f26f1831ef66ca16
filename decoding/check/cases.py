"""Requests to try a plugin with: random ones, that ask for its strategies, steps and judges in all kinds of ways."""

from __future__ import annotations

import random
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from decoding.contract.params import (
    Beam,
    BestOf,
    InvalidParam,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.contract.params.declared import Declared, FromText, IsToken, Within, declared
from decoding.contract.params.plugin import PluginStep
from decoding.contract.plugins import Plugin

MAX_ROWS = 8
TRIES = 200


class NoCase(ValueError):
    """No parameters were found that the plugin's own checks take."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the things that a plugin brings, and requests that ask for it."""

    kind: str
    name: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """token_bytes: of each id, as far as known."""

    size: int
    token_bytes: Sequence[bytes]


def subjects(plugin: Plugin, vocabulary: Vocabulary, count: int, seed: int = 0) -> Iterator[Subject]:
    """Each with as many requests. Raises NoCase."""
    for strategy in plugin.strategies:
        rng = random.Random(f"{seed} {strategy.name}")
        tried = [_params(rng, strategy.params, vocabulary) for _ in range(count)]
        requests = [_request(rng, vocabulary, each, at=i, draws=strategy.draws) for i, each in enumerate(tried)]
        yield Subject("strategy", strategy.name, tuple(requests))
    for step in plugin.steps:
        rng = random.Random(f"{seed} {step.NAME}")
        requests = [_stepped(rng, vocabulary, _params(rng, step, vocabulary), at=i) for i in range(count)]
        yield Subject("step", step.NAME, tuple(requests))
    for judge in plugin.judges:
        rng = random.Random(f"{seed} {judge.NAME}")
        judged = (BestOf(rng.randrange(1, 3), rng.randrange(2, 5), judge.NAME) for _ in range(count))
        requests = [_request(rng, vocabulary, each, at=i) for i, each in enumerate(judged)]
        yield Subject("judge", judge.NAME, tuple(requests))


def neighbours(vocabulary: Vocabulary, count: int, seed: int = 1) -> list[Request]:
    """Requests of ours, that share the batch."""
    rng = random.Random(seed)
    strategies = [Sampling(rng.randrange(1, 4)) if i % 3 else Beam(2, rng.randrange(2, 5)) for i in range(count)]
    return [_request(rng, vocabulary, each, at=i) for i, each in enumerate(strategies)]


def _stepped(rng: random.Random, vocabulary: Vocabulary, step: PluginStep, at: int) -> Request:
    strategy = Sampling(rng.randrange(1, 4)) if step.warps or at % 2 else Beam(1, 3)
    return _request(rng, vocabulary, strategy, step=step, at=at)


def _request(
    rng: random.Random,
    vocabulary: Vocabulary,
    params: StrategyParams,
    *,
    at: int,
    draws: bool = True,
    step: PluginStep | None = None,
) -> Request:
    """The first ones report no log-probs: what is read without them must have been asked for."""
    draws = draws and not isinstance(params, Beam)
    prompt = tuple(rng.randrange(vocabulary.size) for _ in range(rng.randrange(1, 30)))
    return Request(
        prompt,
        params,
        LogitsParams(
            temperature=(1.0 if step and step.warps else rng.choice([0.0, 0.7, 1.0, 1.5])) if draws else 0.0,
            top_k=rng.choice([0, 0, 5]) if draws else 0,
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            logit_bias=rng.choice([(), (), ((rng.randrange(vocabulary.size), 2.0),)]),
            plugin_steps=() if step is None else (step,),
        ),
        StoppingParams(rng.randrange(4, 24), ignore_eos=rng.random() < 0.5),
        LogprobsParams(
            output=None if at < 2 else rng.choice([None, 0, 3]),
            prompt=None if at < 2 else rng.choice([None, None, 2]),
            mode=rng.choice(["raw", "raw", "processed"]),
        ),
        seed=rng.randrange(2**63),
        trace=at == 2,
    )


def _params(rng: random.Random, kind: type[Any], vocabulary: Vocabulary) -> Any:
    """Params that the plugin offers to be tried, else random ones within what it declares. Raises NoCase."""
    for _ in range(TRIES):
        try:
            params = kind.sample(rng) or kind(**dict(_values(rng, kind, vocabulary)))
            if getattr(params, "max_rows", 1) <= MAX_ROWS:
                return params
        except InvalidParam:
            continue
    raise NoCase(f"{kind.__name__}: no random parameters are valid; give it a classmethod `sample(rng)`")


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
