"""What a server holds, looked at again and again: memory, descriptors and threads of its processes, and its metrics.

Memory is RssAnon + VmSwap: a leak hides in swap from whoever looks at the resident memory alone. Linux only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httptools

from loadtest.client import Client

PROC = Path("/proc")
Role = Literal["server", "worker"]
COUNTED = "polydecode_requests_total"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    role: Role
    pid: int
    memory: int  # bytes
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """seconds: since the soak began. metrics: series without labels -> sum, None where /metrics did not answer."""

    seconds: float
    processes: tuple[ProcessSample, ...]
    metrics: dict[str, float] | None
    num_series: int
    health_seconds: float | None
    ready_seconds: float | None
    ready_status: int | None


def family(pid: int) -> list[int]:
    """The process and its descendants, parents first. A launcher (make, a shell) counts as one of them."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += sorted(children.get(member, ()))
    return found


def server_and_worker(pid: int) -> tuple[int | None, int | None]:
    """The worker is a module of that name and the server is its parent: without a worker neither can be told."""
    workers = {member: _parent(PROC / str(member)) for member in family(pid) if _is_worker(member)}
    found = [(server, worker) for worker, server in workers.items() if server not in workers]  # a fork is no worker
    return found[-1] if found else (None, None)


def kill_worker(pid: int) -> int | None:
    """kill -9 for the worker under `pid`; its id, None if there is none now."""
    _, worker = server_and_worker(pid)
    if worker is None:
        return None
    try:
        os.kill(worker, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return worker


def look_at(server: int | None, worker: int | None) -> tuple[ProcessSample, ...]:
    pairs: Sequence[tuple[Role, int | None]] = (("server", server), ("worker", worker))
    samples = [_sample(role, each) for role, each in pairs if each is not None]
    return tuple(sample for sample in samples if sample is not None)


def _sample(role: Role, pid: int) -> ProcessSample | None:
    """None for a process that ends just now."""
    directory = PROC / str(pid)
    try:
        lines = (directory / "status").read_text(errors="replace").splitlines()
        num_descriptors = sum(1 for _ in (directory / "fd").iterdir())
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    if "RssAnon" not in values:  # a zombie has no memory
        return None
    memory = sum(int(values[name].split()[0]) << 10 for name in ("RssAnon", "VmSwap"))
    return ProcessSample(role, pid, memory, num_descriptors, int(values["Threads"]))


def _parent(directory: Path) -> int | None:
    try:
        return int((directory / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _is_worker(pid: int) -> bool:
    """By the module it runs: a server has the word among its flags."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    module = command[command.index(b"-m") + 1 :][:1] if b"-m" in command else []
    return any(name.endswith(b"worker") for name in module) and _is_alive(pid)


class Watch:
    """Takes samples. `pid`: the server's, or its launcher's; None where the processes cannot be seen."""

    def __init__(self, client: Client, pid: int | None) -> None:
        self._client = client
        self._pid = pid
        self._server: int | None = None  # once a worker showed which it is
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    async def sample(self) -> Sample:
        seconds = self.seconds
        server, worker = (None, None) if self._pid is None else server_and_worker(self._pid)
        self._server = server or self._server
        processes = look_at(self._server, worker)
        health_seconds, _ = await self._timed("/health")
        ready_seconds, ready_status = await self._timed("/ready")
        metrics, num_series = await self.metrics()
        return Sample(seconds, processes, metrics, num_series, health_seconds, ready_seconds, ready_status)

    async def metrics(self) -> tuple[dict[str, float] | None, int]:
        """Series without labels -> sum, and how many series there are with them."""
        try:
            status, text = await self._client.get("/metrics")
        except (OSError, TimeoutError, httptools.HttpParserError):
            return None, 0
        return (parse_metrics(text.decode()), count_series(text.decode())) if status == 200 else (None, 0)

    async def _timed(self, path: str) -> tuple[float | None, int | None]:
        begin = time.perf_counter()
        try:
            status, _ = await self._client.get(path)
        except (OSError, TimeoutError, httptools.HttpParserError):
            return None, None
        return time.perf_counter() - begin, status


def parse_metrics(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in text.splitlines():
        if line[:1] not in ("#", ""):
            name, _, value = line.rpartition(" ")
            series = name.partition("{")[0]
            values[series] = values.get(series, 0.0) + float(value)
    return values


def count_series(text: str) -> int:
    return sum(1 for line in text.splitlines() if line[:1] not in ("#", ""))
