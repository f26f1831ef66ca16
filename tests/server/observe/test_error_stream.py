"""That a log nobody reads, or can read, holds up nothing: real pipes, a real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from server.observe.error_stream import MAX_PENDING, ErrorStream
from tests.running_server import free_port
from tests.server.test_service import eventually
from tests.server.world import model_directory

SECONDS = 60.0
COMMAND = (sys.executable, "-m", "tests.server.tiny_api", "--log-format", "json", "--port")
PIPE_BYTES = 1 << 16  # what a pipe holds that nobody reads
NUM_REQUESTS = 300 + (MAX_PENDING + 2 * PIPE_BYTES) // 150  # a line of the access log has more than 150 bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("models") / "tiny")


@contextlib.contextmanager
def server(model: Path, stderr: int | IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = [*COMMAND, str(port), "--model", str(model), "--restart-delay", "0.1"]
    process = subprocess.Popen(command, stderr=stderr, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http:
            eventually(lambda: status(http) == 200)
            yield process, http
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def status(http: httpx.Client) -> int | None:
    try:
        return http.get("/ready").status_code
    except httpx.TransportError:
        return None


def num_dropped(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("polydecode_log_lines_dropped_total "))


def test_a_log_that_nobody_reads_stops_nothing(model: Path) -> None:
    reader, writer = os.pipe()
    with server(model, writer) as (process, http):
        os.close(writer)
        for _ in range(NUM_REQUESTS):  # each is a line in the access log
            assert http.get("/nowhere").status_code == 404
        assert http.get("/health").status_code == 200
        assert num_dropped(http) > 0
        with os.fdopen(reader, "rb") as log:
            reading = _Reading(log)
            eventually(lambda: any("log lines dropped" in line["event"] for line in reading.events))
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
            reading.join()
    dropped = [line["lines"] for line in reading.events if "log lines dropped" in line["event"]]
    assert sum(dropped) > 0
    assert sum(line.get("path") == "/nowhere" for line in reading.events) + sum(dropped) >= NUM_REQUESTS


def test_sigterm_ends_a_server_whose_log_nobody_reads(model: Path) -> None:
    reader, writer = os.pipe()
    with server(model, writer) as (process, http):
        os.close(writer)
        for _ in range(NUM_REQUESTS):
            http.get("/nowhere")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    os.close(reader)


def test_a_log_whose_reader_has_gone_loses_no_worker(model: Path) -> None:
    reader, writer = os.pipe()
    with server(model, writer) as (process, http):
        os.close(writer)
        os.close(reader)
        assert http.get("/nowhere").status_code == 404
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        eventually(lambda: [w.pid for w in psutil.Process(process.pid).children()] not in ([], [worker.pid]))
        eventually(lambda: status(http) == 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_server_started_without_standard_streams_serves(model: Path) -> None:
    port = free_port()
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, str(port), "--model", str(model)]
    process = subprocess.Popen(line, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http:
            eventually(lambda: status(http) == 200)
            assert http.get("/nowhere").status_code == 404
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_lines_are_dropped_whole_and_counted() -> None:
    reader, writer = os.pipe()
    stream = ErrorStream(writer)
    block = b"x" * 99 + b"\n"
    stream.take(b"begun")
    stream.take(block * (MAX_PENDING // 100 + 1) + b"y" * 50)  # too much: all of it is dropped
    stream.take(b"the rest of a dropped line\nwhole\n")
    giving = threading.Thread(target=stream.give)
    giving.start()
    stream.end()
    giving.join(SECONDS)
    assert os.read(reader, 1000) == b"begun\nwhole\n"
    assert stream.num_dropped == MAX_PENDING // 100 + 2
    os.close(reader)
    os.close(writer)


def test_a_descriptor_that_must_not_block_gets_all_that_is_written() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream = ErrorStream(writer)
    giving = threading.Thread(target=stream.give)
    giving.start()
    data = b"z" * 99 + b"\n"
    for _ in range(4 * PIPE_BYTES // 100):
        stream.take(data)
    got = b""
    while len(got) < 4 * PIPE_BYTES // 100 * 100:
        got += os.read(reader, PIPE_BYTES)
    stream.end()
    giving.join(SECONDS)
    assert got == data * (4 * PIPE_BYTES // 100)
    os.close(reader)
    os.close(writer)


class _Reading(threading.Thread):
    """Reads a log to its end; every line must be JSON but those of progress."""

    def __init__(self, log: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.events: list[dict[str, object]] = []
        self._log = log
        self.start()

    def run(self) -> None:
        for line in self._log:
            if not line.startswith(b"polydecode: "):
                self.events.append(json.loads(line))
