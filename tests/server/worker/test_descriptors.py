"""A server that may open few files serves fewer connections, and its worker is replaced although all are in use."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from server.worker.descriptors import RESERVED
from tests.server.test_service import COMMAND, SECONDS, Served, assert_json_error, eventually, raw, served
from tests.server.world import model_directory

PATIENT = ("--header-timeout", "600", "--keep-alive", "600", "--restart-delay", "0.05")
MANY = 1200  # `select` can handle 1024


def limited_to(limit: str, *command: str) -> list[str]:
    """The command in a process that may open no more files."""
    return ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", *command]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """For the test's own ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4 * MANY:
        pytest.skip("may not open enough files itself")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def connections(server: Served, count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS))
        yield


def lose_worker(server: Served, http: httpx.Client) -> None:
    """Until another one is ready; asks on a connection that was there before."""
    worker = server.worker()
    worker.kill()
    eventually(lambda: has_another(server, worker.pid) and http.get("/ready").status_code == 200)


def has_another(server: Served, pid: int) -> bool:
    return [child.pid for child in psutil.Process(server.process.pid).children()] not in ([], [pid])


def log_lines(server: Served) -> str:
    server.process.terminate()
    assert server.end() == 0
    return "\n".join(server.lines)


def test_fewer_connections_are_served_where_the_limit_cannot_be_raised(model: Path) -> None:
    possible = 20
    command = limited_to(f"-n {RESERVED + possible}", *COMMAND)
    with served(model, *PATIENT, command=command) as server:
        with server.http() as http:
            assert http.get("/health").status_code == 200
            with connections(server, possible - 1):
                assert_json_error(raw(server, b""), 503, "too_many_connections")
                with connections(server, 300):  # more than there are descriptors
                    lose_worker(server, http)
            eventually(lambda: http.get("/health").status_code == 200)
        lines = log_lines(server)
    assert '"max_connections": 4096' in lines
    assert f'"possible": {possible}' in lines


def test_a_low_limit_is_raised_if_it_can_be(model: Path, many_descriptors: None) -> None:
    command = limited_to("-Sn 64", *COMMAND)
    with served(model, *PATIENT, "--max-connections", "1500", command=command) as server:
        assert psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] == 1500 + RESERVED
        with server.http() as http, connections(server, MANY):
            lose_worker(server, http)
        assert "fewer connections" not in log_lines(server)


def test_no_room_at_all_is_said_at_once(model: Path) -> None:
    command = limited_to(f"-n {RESERVED}", sys.executable, "-m", "server", "--model", str(model), "--port", "0")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 1
    assert f"(ulimit -n) is {RESERVED}" in ended.stderr.splitlines()[-1]
    assert f"{4096 + RESERVED} for max_connections = 4096" in ended.stderr


def test_only_some_of_too_many_connections_are_kept_for_an_answer(model: Path) -> None:
    with served(model, *PATIENT, "--max-connections", "1") as server, connections(server, 1), ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        refused = [stack.enter_context(socket.create_connection(address, timeout=SECONDS)) for _ in range(200)]
        answers = [received(connection) for connection in refused]
    assert_json_error(next(answer for answer in answers if answer), 503, "too_many_connections")
    assert b"" in answers


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the kernel does not show a process' descriptors")
def test_a_lost_worker_is_replaced_although_no_descriptor_is_free(model: Path) -> None:
    with served(model, *PATIENT) as server, server.http() as http, ExitStack() as stack:
        assert http.get("/ready").status_code == 200
        while holes(server):
            stack.enter_context(connections(server, 1))
            assert http.get("/health").status_code == 200
        limit = max(descriptors(server)) + 1
        psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        for _ in range(2):
            lose_worker(server, http)


def descriptors(server: Served) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}


def holes(server: Served) -> bool:
    taken = descriptors(server)
    return len(taken) <= max(taken)
