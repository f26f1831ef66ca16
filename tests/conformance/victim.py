"""The victim: somebody's stream beside an attack, whose tokens must stay golden, and the check that follows an attack.

    async with beside_a_victim(server) as http:
        ...  # the attack, over `http` or a socket of its own

After the block the victim has got a whole golden answer at least once, and the server is as it was: the same
processes, gauges at zero, every page free, memory and descriptors flat, a golden answer to the next request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from tests.conformance.exchange import assert_idle
from tests.running_server import RunningServer

SLACK_BYTES = 64 * 2**20  # allocators keep some; a leak of an attack that sends megabytes is more
SLACK_DESCRIPTORS = 3
FIRST_TOKEN_SECONDS = 120
SETTLE_SECONDS = 30
RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Golden:
    """What greedy decoding makes of a prompt, whatever runs beside it."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]


def smollm2_goldens(count: int = 6) -> list[Golden]:
    """Of the embedded model in float32, as recorded from transformers; the shortest prompts."""
    path = Path(__file__).parents[1] / "goldens" / "smollm2_greedy.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["prompts"]
    goldens = [Golden(case["prompt_token_ids"], case["token_ids"]) for case in cases]
    return sorted(goldens, key=lambda golden: len(golden.prompt_ids))[:count]


async def recorded(http: httpx.AsyncClient, *prompts: Sequence[int], max_tokens: int = 48) -> list[Golden]:
    """Of a model without recorded goldens: what it says to each prompt alone."""
    goldens = []
    for prompt in prompts:
        body = {"prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        goldens.append(Golden(prompt, answer.json()["choices"][0]["token_ids"]))
    return goldens


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the processes of a server hold, by process id."""

    memory: Mapping[int, int]  # bytes that are the process's own, swapped out or not
    num_descriptors: Mapping[int, int]

    @classmethod
    def of(cls, server: RunningServer) -> Holdings:
        server_process = psutil.Process(server.pid)
        children = server_process.children(recursive=True)
        processes = [server_process, *(child for child in children if not _may_be_lost(child))]
        return cls(
            memory={process.pid: private_bytes(process.pid) for process in processes},
            num_descriptors={process.pid: process.num_fds() for process in processes},
        )


def _may_be_lost(process: psutil.Process) -> bool:
    """The one that compiles clients' grammars comes with the first of them and goes with one that takes too long."""
    return "server.text.grammar_process" in process.cmdline()


def private_bytes(pid: int) -> int:
    """RssAnon + VmSwap: a leak hides in swap from whoever looks at the resident memory alone."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return sum(int(values[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap"))


@asynccontextmanager
async def beside_a_victim(
    server: RunningServer,
    goldens: Sequence[Golden] | None = None,
    *,
    bears: Collection[int] = (),
    headers: Mapping[str, str] | None = None,
    is_worker_kept: bool = True,
    slack_bytes: int = SLACK_BYTES,
) -> AsyncIterator[httpx.AsyncClient]:
    """`goldens`: of another model than SmolLM2. `bears`: statuses that the victim may be told and tries again after.

    A 503 that is borne may also end a stream that has begun, after golden tokens. `headers` go with every request.
    """
    goldens = goldens or smollm2_goldens()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits, headers=headers) as http:
        await assert_golden(http, goldens[0])
        before = Holdings.of(server)
        victim = Victim(http, goldens, frozenset(bears))
        async with victim.streaming():
            yield http
        assert victim.num_answers > 0
        await assert_idle(http)
        if is_worker_kept:
            await assert_unchanged(server, before, slack_bytes)
        await assert_golden(http, goldens[0])


class Victim:
    """Asks for one golden stream after another."""

    def __init__(self, http: httpx.AsyncClient, goldens: Sequence[Golden], bears: frozenset[int]) -> None:
        self.num_answers = 0
        self._http = http
        self._goldens = goldens
        self._bears = bears
        self._began = asyncio.Event()
        self._is_over = False

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        """From its first token on to the end of the answer that was under way when the block ended."""
        streaming = asyncio.create_task(self._stream_on())
        began = asyncio.create_task(self._began.wait())
        try:
            await asyncio.wait({streaming, began}, timeout=FIRST_TOKEN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert self._began.is_set(), streaming
            yield
            self._is_over = True
            await streaming
        finally:
            began.cancel()
            streaming.cancel()
            await asyncio.wait({streaming})

    async def _stream_on(self) -> None:
        turn = 0
        while not (self._is_over and self.num_answers):
            if await self._stream(self._goldens[turn % len(self._goldens)]):
                self.num_answers += 1
                turn += 1
            else:
                await asyncio.sleep(RETRY_SECONDS)

    async def _stream(self, golden: Golden) -> bool:
        """Whether all of the answer came; tokens that are not golden fail the test."""
        token_ids: list[int] = []
        async with self._http.stream("POST", "/v1/completions", json=_body(golden) | {"stream": True}) as answer:
            if answer.status_code in self._bears:
                await answer.aread()
                return False
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    assert token_ids == list(golden.token_ids)
                    return True
                if line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        return self._bear(chunk)
                    token_ids += [token for choice in chunk["choices"] for token in choice["token_ids"]]
                    assert token_ids == list(golden.token_ids[: len(token_ids)])
                    self._began.set()
        raise AssertionError("the victim's stream ended without [DONE] and without an error")

    def _bear(self, chunk: dict[str, dict[str, str]]) -> bool:
        assert 503 in self._bears, chunk
        assert chunk["error"]["type"] == "unavailable_error"
        return False


async def assert_golden(http: httpx.AsyncClient, golden: Golden) -> None:
    """The canary: one more request is answered as ever."""
    answer = await http.post("/v1/completions", json=_body(golden))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["token_ids"] == list(golden.token_ids)


async def assert_unchanged(server: RunningServer, before: Holdings, slack_bytes: int) -> None:
    """The same processes hold what they held. Closing connections and freed memory take a moment to be gone."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (change := _change(before, Holdings.of(server), slack_bytes)) is not None:
        assert time.monotonic() < deadline, change
        await asyncio.sleep(0.1)


def _change(before: Holdings, after: Holdings, slack_bytes: int) -> str | None:
    if before.memory.keys() != after.memory.keys():
        return f"processes {sorted(before.memory)} became {sorted(after.memory)}"
    for pid, held in before.memory.items():
        if after.memory[pid] > held + slack_bytes:
            return f"process {pid} grew from {held >> 20} to {after.memory[pid] >> 20} MiB"
        if after.num_descriptors[pid] > before.num_descriptors[pid] + SLACK_DESCRIPTORS:
            return f"process {pid} went from {before.num_descriptors[pid]} to {after.num_descriptors[pid]} descriptors"
    return None


def _body(golden: Golden) -> dict[str, object]:
    return {
        "prompt": list(golden.prompt_ids),
        "max_tokens": len(golden.token_ids),
        "temperature": 0,
        "return_token_ids": True,
    }
