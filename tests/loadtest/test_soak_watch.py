"""Which of a command's processes is the server and which its worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.soak.watch import kill_worker, server_and_worker

WORKER = """
import os, sys
child = os.fork()  # bears the worker's command line
if child == 0:
    sys.stdin.read()
else:
    print(os.getppid(), os.getpid(), flush=True)
    os.waitpid(child, 0)
"""
SERVER = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "some_worker"])
print("began", flush=True)
worker.wait()
print("ended", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that starts a server, among whose flags is the word worker, with a worker that has forked."""
    (tmp_path / "some_worker.py").write_text(WORKER)
    (tmp_path / "server.py").write_text(SERVER)
    command = ["sh", "-c", f'"{sys.executable}" server.py --worker-restarts 3; true']
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate(timeout=60)


def test_the_worker_is_known_by_its_module_and_the_server_as_its_parent(launched: subprocess.Popen[str]) -> None:
    assert launched.stdout is not None
    said = [launched.stdout.readline(), launched.stdout.readline()]
    server, worker = map(int, next(line for line in said if line != "began\n").split())
    assert server_and_worker(launched.pid) == (server, worker)
    assert kill_worker(launched.pid) == worker
    assert launched.stdout.readline() == "ended\n"
    assert server_and_worker(launched.pid) == (None, None)
    assert kill_worker(launched.pid) is None
