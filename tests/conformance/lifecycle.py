"""What the lifecycle tests do to a server's processes, and how they see what became of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.running_server import RunningServer, ServerFailed

SECONDS = 120.0  # far more than anything takes, on any machine
NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def server_process(server: RunningServer) -> psutil.Process:
    """The server itself, also behind a launcher."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return next(p for p in family if p.name() != "unshare")


def worker_process(server: RunningServer) -> psutil.Process:
    (worker,) = server_process(server).children()
    return worker


def exits_with(status: int) -> AbstractContextManager[object]:
    """Around a server's block: it must have ended by itself, so, when the block is over."""
    return pytest.raises(ServerFailed, match=rf"exited by itself with {status};")


@cache
def can_make_first_processes() -> bool:
    """Whether this machine lets us start a process as number 1 of a namespace."""
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():  # noqa: ASYNC110 - the conditions are other processes'
            await asyncio.sleep(0.02)


async def await_status(http: httpx.AsyncClient, status: str) -> None:
    async def is_so() -> bool:
        answer = await http.get("/ready")
        assert (answer.status_code == 200) == (answer.json()["status"] == "ready")
        return bool(answer.json()["status"] == status)

    await eventually(is_so)


async def await_new_worker(http: httpx.AsyncClient, server: RunningServer, old: psutil.Process) -> None:
    """Another process is ready, and of the old one not even a zombie is left."""

    async def is_so() -> bool:
        return all(p.pid != old.pid for p in server_process(server).children())

    await eventually(is_so)
    await await_status(http, "ready")
    assert not old.is_running()
    assert worker_process(server).status() != psutil.STATUS_ZOMBIE


@dataclass
class Streamed:
    """One stream as it came. error: of its last event, or of the answer that there was instead."""

    status: int = 0
    token_ids: list[int] = field(default_factory=list)
    error: dict[str, Any] | None = None
    is_done: bool = False
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended_as_promised(self) -> bool:
        """[DONE], or an error in its place, never both."""
        return self.is_done == (self.error is None)

    async def read(self, http: httpx.AsyncClient, body: dict[str, Any]) -> Streamed:
        asked = {"temperature": 0, "return_token_ids": True, **body, "stream": True}
        async with http.stream("POST", "/v1/completions", json=asked) as answer:
            self.status = answer.status_code
            if answer.status_code != 200:
                self.error = json.loads(await answer.aread())["error"]
                return self
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self._take(line.removeprefix("data: "))
        return self

    def _take(self, event: str) -> None:
        assert not self.is_done
        assert self.error is None, "an event after the error"
        self.is_done = event == "[DONE]"
        if not self.is_done:
            chunk = json.loads(event)
            self.error = chunk.get("error")
            self.token_ids += [token for choice in chunk.get("choices", ()) for token in choice["token_ids"]]
            self.has_begun.set()


async def streams(
    http: httpx.AsyncClient, bodies: list[dict[str, Any]]
) -> list[tuple[Streamed, asyncio.Task[Streamed]]]:
    """All of them under way, each with its first token."""
    begun = []
    for body in bodies:
        streamed = Streamed()
        begun.append((streamed, asyncio.create_task(streamed.read(http, body))))
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(streamed.has_begun.wait() for streamed, _ in begun))
    return begun
