"""A crowd of random requests, and a run in which they arrive, leave and get preempted at random."""

from __future__ import annotations

import random

from decoding.engine import Engine
from decoding.params import BestOf, LogitsParams, LogprobsParams, Request, Sampling, StoppingParams, StrategyParams
from decoding.strategies import build
from tests.decoding.drive import Answer


def random_requests(rng: random.Random, count: int, vocab: int, longest: int = 40) -> list[Request]:
    """Greedy, seeded sampling with all kinds of parameters, n and best_of; half of them share one of three prefixes."""
    prefixes = [[rng.randrange(vocab) for _ in range(rng.randrange(8, longest))] for _ in range(3)]
    return [_random_request(rng, vocab, longest, prefixes) for _ in range(count)]


def _random_request(rng: random.Random, vocab: int, longest: int, prefixes: list[list[int]]) -> Request:
    head = rng.choice(prefixes) if rng.random() < 0.5 else []
    own = [rng.randrange(vocab) for _ in range(rng.randrange(1, longest))]
    max_tokens = rng.randrange(1, 24)
    return Request(
        prompt_ids=(*head, *own),
        strategy=_strategy(rng),
        logits=_logits(rng, vocab),
        stopping=StoppingParams(
            max_tokens=max_tokens,
            min_tokens=rng.choice([0, 0, max_tokens // 2]),
            stop_token_ids=rng.choice([(), (rng.randrange(vocab),)]),
            ignore_eos=rng.random() < 0.3,
        ),
        logprobs=LogprobsParams(
            output=rng.choice([None, 0, 3]),
            prompt=rng.choice([None, None, None, 2]),
            mode=rng.choice(["raw", "raw", "processed"]),
        ),
        seed=rng.randrange(2**63),
        cache_salt=rng.choice(["", "", "tenant"]),
    )


def _strategy(rng: random.Random) -> StrategyParams:
    kind = rng.random()
    if kind < 0.6:
        return Sampling()
    if kind < 0.8:
        return Sampling(rng.randrange(2, 5))
    best_of = rng.randrange(2, 5)
    return BestOf(rng.randrange(1, best_of + 1), best_of, rng.choice(["mean", "sum"]))


def _logits(rng: random.Random, vocab: int) -> LogitsParams:
    return LogitsParams(
        temperature=rng.choice([0.0, 0.0, 0.3, 1.0, 1.0, 1.7]),
        top_k=rng.choice([0, 0, 1, 5, 20]),
        top_p=rng.choice([1.0, 1.0, 0.5, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
        presence_penalty=rng.choice([0.0, 0.0, 0.4]),
        logit_bias=rng.choice([(), (), ((rng.randrange(vocab), 3.0),)]),
        allowed_token_ids=rng.choice([None, None, None, tuple(range(0, vocab, 2))]),
    )


def run_crowd(engine: Engine, requests: list[Request], rng: random.Random) -> dict[int, Answer]:
    """Requests arrive in bursts between ticks and one in eight is cancelled at some random moment.

    Returns the answers of the others, by index. The books are checked after every tick and must be empty at the end.
    """
    answers = {i: Answer() for i in range(len(requests))}
    coming = list(range(len(requests)))
    doomed = {i: rng.randrange(1, 12) for i in coming if rng.random() < 0.125}
    age: dict[int, int] = {}
    while coming or engine.has_work:
        while coming and (rng.random() < 0.5 or not engine.has_work):
            index = coming.pop(0)
            engine.add(index, requests[index], build)
            age[index] = 0
        for output in engine.tick():
            answers[output.request_id].take(output)
        for index in list(age):
            age[index] += 1
            if doomed.get(index) == age[index]:
                engine.cancel(index)
                del answers[index]
        engine.check_integrity()
        assert not [w for live in engine.scheduler.waiting for w in live.works if w.row.table.pages]
    assert engine.used_pages == 0
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    finished = {i: a for i, a in answers.items() if a.usage is not None}
    assert set(answers) - set(finished) == set()
    return finished
