"""The server in a process of its own, on a real socket, before a pipeline that makes one token a step."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.client import Client
from loadtest.contender import Ready
from loadtest.outcome import Completed, Failed
from loadtest.side import read_sides
from loadtest.target import Target, dialect
from tests.running_server import ROOT, free_port

PEERS = ROOT / "loadtest" / "peers"


@dataclass(frozen=True)
class Peer:
    url: str
    told: asyncio.StreamReader

    def client(self, **extra: Any) -> Client:
        return Client(Target(self.url, dialect("polydecode"), extra=extra), timeout=20.0)

    async def next(self, key: str) -> dict[str, Any]:
        """The next thing the pipeline tells that has this key."""
        async with asyncio.timeout(20):
            while True:
                told: dict[str, Any] = json.loads(await self.told.readline())
                if key in told:
                    return told


@asynccontextmanager
async def peer(*arguments: str) -> AsyncIterator[Peer]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PEERS / "openvino_server.py"), "DIR", "--port", str(port), *arguments),
        stdout=PIPE,
        env={"PYTHONPATH": str(Path(__file__).parent / "fake")},
    )
    assert process.stdout is not None
    serving = Peer(f"http://127.0.0.1:{port}", process.stdout)
    try:
        await Ready(serving.client(), "/ready", 20.0).wait()
        yield serving
    finally:
        process.kill()
        await process.wait()


async def test_every_token_is_sent_as_it_is_made_and_counted() -> None:
    async with peer() as serving:
        outcome = await serving.client().complete("one two three", 5)
        asked = await serving.next("added")
    assert isinstance(outcome, Completed)
    assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.wanted_tokens) == (3, 5, 5)
    assert len(outcome.arrivals) == 5
    assert asked["config"] == {"max_new_tokens": 5, "ignore_eos": True, "num_beams": 1, "num_return_sequences": 1}


async def test_beams_come_all_at_the_end_and_all_count() -> None:
    async with peer() as serving:
        outcome = await serving.client().complete("one two three", 5, beams=4)
        asked = await serving.next("added")
    assert isinstance(outcome, Completed)
    assert (outcome.completion_tokens, outcome.wanted_tokens) == (20, 20)
    assert (asked["config"]["num_beams"], asked["config"]["num_return_sequences"]) == (4, 4)


async def test_requests_share_the_steps() -> None:
    async with peer() as serving:
        long = asyncio.create_task(serving.client().complete("long", 90_000))
        await serving.next("added")
        short = await serving.client().complete("short", 3)
        assert (await serving.next("added"))["added"] == 2
        steps = [(await serving.next("step"))["step"] for _ in range(3)]
        long.cancel()
    assert isinstance(short, Completed)
    assert steps == [[1, 2]] * 3


async def test_a_request_whose_client_has_gone_is_cancelled() -> None:
    async with peer() as serving:
        long = asyncio.create_task(serving.client().complete("long", 90_000))
        await serving.next("added")
        long.cancel()
        assert await serving.next("cancelled") == {"cancelled": 1}
        assert isinstance(await serving.client().complete("next", 2), Completed)


async def test_what_it_cannot_do_is_refused_rather_than_measured_wrongly() -> None:
    async with peer() as serving:
        outcomes = [await serving.client(**extra).complete("one", 2) for extra in ({"n": 2}, {"stream": False})]
    assert [outcome.kind for outcome in outcomes if isinstance(outcome, Failed)] == ["400", "400"]


async def test_the_scheduler_and_the_device_are_told_what_the_command_says() -> None:
    async with peer("--cache-size", "3", "--properties", '{"A": 1}') as serving:
        told = await serving.next("model")
    assert (told["model"], told["device"], told["properties"]) == ("DIR", "CPU", {"A": 1})
    assert told["scheduler"] == {
        "cache_size": 3,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "enable_prefix_caching": True,
    }


def test_the_contenders_of_the_table_can_be_read(monkeypatch: Any) -> None:
    openvino = ("OPENVINO_PYTHON", "OPENVINO_FP16", "OPENVINO_INT8")
    for name in ("VLLM", "MODEL", *openvino, "LLAMA_SERVER", "GGUF", "THREADS"):
        monkeypatch.setenv(name, f"/of/{name}")
    sides = read_sides(PEERS / "contenders.toml", [])
    assert len({side.target.url for side in sides.values()}) == len(sides)
    commands = {name: str(side.command) for name, side in sides.items()}
    assert "openvino_server.py /of/OPENVINO_INT8 --port 8923" in commands["openvino int8"]
    assert all(side.target.url.rpartition(":")[2] in commands[name] for name, side in sides.items())
