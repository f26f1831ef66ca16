"""The real server as a subprocess in a process group of its own, for tests that talk to it over a socket.

`running_server(*flags)` starts it on a free port, waits for /ready, and at the end sends SIGTERM to the group: it
must exit with 0 and leave no process behind. The output is shown when something goes wrong.
"""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
READY_SECONDS = 240.0  # the first start converts the embedded model, on a busy machine
EXIT_SECONDS = 60.0
LOG_TAIL_BYTES = 4000


class ServerFailed(AssertionError):
    """The server did not start, did not become ready, or did not go; the message ends with its output."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is ready. `pid` is also the id of its process group."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def status_of(self, path: str) -> int | None:
        """The status GET answers with, or None while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"the server {what}; its output ends with:\n{self.output[-LOG_TAIL_BYTES:]}")


def free_port() -> int:
    """Below those that the kernel gives to connections, so that none takes it before its server does.

    Each process of a parallel run has a range of its own.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1000 * (process % 12)
    while True:
        port = first + secrets.randbelow(1000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """Ours without POLYDECODE_*: a developer's settings must not reach a test's server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("POLYDECODE_")}


@contextmanager
def running_server(
    *flags: str, command: Sequence[str] = (sys.executable, "-m", "server", "serve"), cwd: Path = ROOT
) -> Iterator[RunningServer]:
    """`command` is any program that takes the server's flags, such as the installed script."""
    port = free_port()
    arguments = [*command, "--port", str(port), *flags]
    with managed(arguments, port, cwd=cwd, environment=clean_environment()) as server:
        yield server


@contextmanager
def managed(
    arguments: Sequence[str], port: int, *, cwd: Path, environment: dict[str, str], exit_code: int = 0
) -> Iterator[RunningServer]:
    """Run `arguments`, which must serve on `port`, until the block ends; then SIGTERM must lead to `exit_code`."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = RunningServer(port, process, log)
        try:
            _wait_until_ready(server)
            yield server
            _end(server, exit_code)
        finally:
            _kill(server)


def _wait_until_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while server.status_of("/ready") != 200:
        if server.process.poll() is not None:
            raise server.failed(f"exited with {server.process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise server.failed(f"was not ready within {READY_SECONDS:.0f} s")
        time.sleep(0.1)


def _end(server: RunningServer, exit_code: int) -> None:
    if server.process.poll() is not None:
        raise server.failed(f"exited by itself with {server.process.returncode}")
    os.killpg(server.pid, signal.SIGTERM)
    try:
        returned = server.process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise server.failed(f"did not go within {EXIT_SECONDS:.0f} s of SIGTERM") from None
    if returned != exit_code:
        raise server.failed(f"answered SIGTERM with exit status {returned}, not {exit_code}")
    if _group_is_alive(server):
        raise server.failed("left processes behind")


def _group_is_alive(server: RunningServer) -> bool:
    """Its worker goes by itself once the parent has gone; give it the seconds that the promise allows."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(server.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def _kill(server: RunningServer) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.process.wait()
