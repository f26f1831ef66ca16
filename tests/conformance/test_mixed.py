"""The mixed test over HTTP: the real model, every strategy at once, readers that leave, a KV cache that is too small.

Whoever stays gets, token for token and bit for bit, what the same request gets when it is sent alone afterwards.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from decoding.contract.params import PARAMS
from tests.conformance.exchange import Said, assert_idle, client, complete, metrics, stream
from tests.conformance.servers.drafting_server import drafting_server
from tests.goldens.prompts import BATTERIES, HARBOUR, QUEUE
from tests.running_server import RunningServer

NUM_REQUESTS = 45
ARRIVAL_SECONDS = 8.0
FLAGS = ("--dtype", "float32", "--kv-memory", "0.11", "--tick-tokens", "64", "--max-rows", "48")

Body = dict[str, Any]
Roll = random.Random

pytestmark = pytest.mark.slow


def hot(roll: Roll) -> Body:
    return {"temperature": roll.choice([0, 0.7, 1.2]), "top_p": roll.choice([1, 0.9]), "top_k": roll.choice([0, 40])}


def beams(roll: Roll) -> Body:
    num_beams = roll.randrange(2, 5)
    return {"num_beams": num_beams, "n": roll.randrange(1, num_beams + 1), "length_penalty": roll.choice([0.6, 1, 2])}


def sed(roll: Roll) -> Body:
    return {"sed": {"k": 2, "delta_ratio": 0.5, "max_rollout": 8, "max_points": 2}}


# strategy -> a request body that asks for it
ASKING: dict[str, Callable[[Roll], Body]] = {
    "sampling": lambda roll: hot(roll) | {"n": roll.choice([1, 3])},
    "best_of": lambda roll: {"temperature": 1.0, "n": 2, "best_of": 3, "best_of_rank": roll.choice(["mean", "sum"])},
    "beam": lambda roll: beams(roll) | {"early_stopping": roll.choice([True, False, "never"])},
    "beam_sample": lambda roll: beams(roll) | {"do_sample": True, "temperature": 1.3},
    "group_beam": lambda roll: {"num_beams": 4, "num_beam_groups": 2, "n": 2, "diversity_penalty": 0.7},
    "best_first": lambda roll: {"num_beams": roll.randrange(2, 4), "beam_mode": "best_first"},
    "contrastive": lambda roll: {"penalty_alpha": 0.6, "top_k": roll.randrange(2, 5)},
    "dola": lambda roll: hot(roll) | {"dola_layers": roll.choice(["low", "high", [5, 12]]), "repetition_penalty": 1.2},
    "guided": lambda roll: hot(roll) | {"guidance_scale": 1.5, "negative_prompt": "Something dull:"},
    "kl_guided": lambda roll: {"temperature": 1.0, "kl_guided": {"sigma": 1.0, "prompt": "Then"}},
    "context_aware": lambda roll: hot(roll) | {"context_aware": {"prompt": "Then", "alpha": 0.5}},
    "pmi": lambda roll: hot(roll) | {"pmi": {"lam": 0.3, "tau": roll.choice([0, 3])}},
    "contrastive_decoding": lambda roll: hot(roll) | {"contrastive_decoding": {"amateur": "draft", "beta": 0.5}},
    "dexperts": lambda roll: hot(roll) | {"dexperts": {"expert": "main", "anti_expert": "draft", "alpha": 0.5}},
    "ensemble": lambda roll: hot(roll) | {"ensemble": {"models": ["draft"]}},
    "entropix": lambda roll: {"entropix": {"uses_attention": roll.random() < 0.7}},
    "cot_decoding": lambda roll: {"cot_decoding": {"k": 3, "suffix": " So it is"}, "n": roll.choice([1, 2])},
    "sed": sed,
    "prompt_lookup": lambda roll: hot(roll) | {"prompt_lookup_num_tokens": 4},
    "assisted": lambda roll: hot(roll) | {"speculative": True, "assistant_confidence_threshold": 0.0},
}
NEVER_STREAMED = {"best_of"}

# Three at once are admitted by their short prompts and outgrow the KV cache however fast the machine is.
NUM_GROWING = 3
GROWING: Body = {"prompt": "Once upon a time", "n": 6, "max_tokens": 88, "temperature": 1.0, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of the crowd. patience: chunks (a stream) or seconds (else) after which its reader leaves."""

    body: Body
    arrives_at: float
    is_streamed: bool
    patience: int | None


def visits(roll: Roll) -> list[Visit]:
    """Every strategy equally often; about one reader in six leaves."""
    names = [list(ASKING)[i % len(ASKING)] for i in range(NUM_REQUESTS)]
    roll.shuffle(names)
    growing = [Visit({**GROWING, "seed": seed}, 0, is_streamed=False, patience=None) for seed in range(NUM_GROWING)]
    return growing + [
        Visit(
            body(name, roll),
            arrives_at=roll.uniform(0, ARRIVAL_SECONDS),
            is_streamed=name not in NEVER_STREAMED and roll.random() < 0.5,
            patience=roll.randrange(1, 4) if roll.random() < 1 / 6 else None,
        )
        for name in names
    ]


def body(name: str, roll: Roll) -> Body:
    """Half of the prompts share a long beginning, which is prefilled in chunks."""
    head = roll.choice([HARBOUR, BATTERIES, QUEUE]) if roll.random() < 0.5 else ""
    tail = roll.choice([" He said that", " It was", " The answer is", " 2 + 3 =", " Once upon a time there was"])
    steps: Body = roll.choice([{}, {}, {"repetition_penalty": 1.1}, {"min_tokens": 6}, {"no_repeat_ngram_size": 3}])
    common: Body = {
        "prompt": head + f"Note {roll.randrange(100)}." + tail,
        "max_tokens": roll.randrange(8, 17),
        "logprobs": roll.randrange(3),
        "seed": roll.randrange(2**31),
    }
    return common | steps | ASKING[name](roll)


@pytest.fixture(scope="module")
def server(smol_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Its KV cache holds a few of the longest requests at once."""
    directory = tmp_path_factory.mktemp("draft") / "model"
    with drafting_server(smol_directory, directory, *FLAGS) as server:
        yield server


async def visit(http: httpx.AsyncClient, visit: Visit) -> Said | None:
    """What the request was told; None when its reader left."""
    await asyncio.sleep(visit.arrives_at)
    if visit.is_streamed:
        said = await stream(http, visit.body, visit.patience)
        return said if visit.patience is None else None
    try:
        async with asyncio.timeout(visit.patience):
            said = await complete(http, visit.body)
    except TimeoutError:
        return None
    return said


def test_the_crowd_asks_for_every_strategy() -> None:
    assert set(ASKING) == set(PARAMS) - {"pooling"}


async def test_everybody_who_stays_is_told_what_he_is_told_alone(server: RunningServer) -> None:
    crowd = visits(random.Random(6))
    async with client(server.url) as http:
        before = await metrics(http)
        told = await asyncio.gather(*(visit(http, each) for each in crowd))
        after = await metrics(http)
        await assert_idle(http)
        for each, said in zip(crowd, told, strict=True):
            if said is not None:
                alone = await complete(http, each.body)
                assert said.choices == alone.choices, each
        await assert_idle(http)
    left = [each for each, said in zip(crowd, told, strict=True) if said is None]
    assert 3 <= len(left) <= len(crowd) // 3
    assert after["vllm:num_preemptions_total"] - before["vllm:num_preemptions_total"] > 0
    assert after["vllm:prefix_cache_hits_total"] - before["vllm:prefix_cache_hits_total"] > 0
