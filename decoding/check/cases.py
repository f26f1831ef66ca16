"""Requests to try a plugin with: random ones, that ask for its strategies, steps and judges in all kinds of ways."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from decoding.contract.params import (
    Beam,
    BestOf,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
    StrategyParams,
)
from decoding.contract.params.plugin import PluginStep
from decoding.contract.plugin_samples import Vocabulary, sample
from decoding.contract.plugins import Plugin


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the things that a plugin brings, and requests that ask for it."""

    kind: str
    name: str
    requests: tuple[Request, ...]


def subjects(plugin: Plugin, vocabulary: Vocabulary, count: int, seed: int = 0) -> Iterator[Subject]:
    """Each with as many requests. Raises NoCase."""
    for strategy in plugin.strategies:
        rng = random.Random(f"{seed} {strategy.name}")
        tried = [sample(rng, strategy.params, vocabulary) for _ in range(count)]
        requests = [_request(rng, vocabulary, each, at=i, draws=strategy.draws) for i, each in enumerate(tried)]
        yield Subject("strategy", strategy.name, tuple(requests))
    for step in plugin.steps:
        rng = random.Random(f"{seed} {step.NAME}")
        requests = [_stepped(rng, vocabulary, sample(rng, step, vocabulary), at=i) for i in range(count)]
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
