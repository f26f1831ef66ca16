"""A worker started before the server: taken over once, ended by whoever holds it, never left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.worker.head_start import HeadStart
from server.worker.process import WorkerProcess

PATIENT = (sys.executable, "-c", "import socket, sys; socket.socket(fileno=int(sys.argv[1])).recv(1)")
ROOT = Path(__file__).parent.parent.parent.parent


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_nobody_took_is_ended() -> None:
    with HeadStart(PATIENT) as head_start:
        assert head_start._started is not None
        pid = head_start._started.process.pid
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_a_taken_worker_is_the_takers() -> None:
    with HeadStart(PATIENT) as head_start:
        started = head_start.take(PATIENT)
        assert started is not None
        assert head_start.take(PATIENT) is None
    worker = await WorkerProcess.adopt(started, lambda _: None)
    assert is_alive(started.process.pid)
    assert not await worker.ended(0.05)
    worker.kill()
    assert await worker.ended(10)
    assert await worker.reap() == "signal SIGKILL"


async def test_an_adopted_workers_own_end_is_heard_of_with_its_status() -> None:
    command = (sys.executable, "-c", "import sys; sys.exit(3)")
    with HeadStart(command) as head_start:
        started = head_start.take(command)
    assert started is not None
    worker = await WorkerProcess.adopt(started, lambda _: None)
    assert await worker.ended(10)
    assert await asyncio.wait_for(worker.reap(), 10) == "exit status 3"


def test_a_worker_of_another_command_is_not_taken() -> None:
    with HeadStart(PATIENT) as head_start:
        assert head_start.take((*PATIENT, "--other")) is None


def test_a_command_that_cannot_be_started_is_left_to_who_wants_it() -> None:
    with HeadStart(("/nonexistent/python",)) as head_start:
        assert head_start.take(("/nonexistent/python",)) is None


@pytest.mark.parametrize("library", ["asyncio", "pydantic", "structlog", "fastapi", "tokenizers"])
def test_the_worker_is_started_before_the_servers_imports(library: str) -> None:
    program = f"import sys, server.__main__; print({library!r} in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
