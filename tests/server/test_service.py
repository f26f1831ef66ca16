"""The whole server as a process: real sockets, real signals, killed workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.server.fake_worker import ANSWER, HANG, SLOW, STALL
from tests.server.world import model_directory

COMMAND = (sys.executable, "-m", "tests.server.tiny_api")
SECONDS = 60.0  # far more than anything takes, on any machine
PATIENT = ("--stall-seconds", "600", "--stall-kill-seconds", "900")  # what comes sooner was noticed otherwise


@dataclass
class Served:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    port: int = 0

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=SECONDS)

    def worker(self) -> psutil.Process:
        (worker,) = psutil.Process(self.process.pid).children()
        return worker

    def await_status(self, status: str) -> None:
        with self.http() as http:
            eventually(lambda: http.get("/ready").json()["status"] == status)

    def end(self) -> int:
        """Waits for the exit, and reads the rest of the log."""
        self.lines += self.process.communicate(timeout=SECONDS)[1].splitlines()
        return self.process.returncode


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def served(model: Path, *flags: str, is_awaited: bool = True, command: Sequence[str] = COMMAND) -> Iterator[Served]:
    """The process is asked, then made, to go; its group must be empty afterwards."""
    command = [*command, "--port", "0", "--model", str(model), "--log-format", "json", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    server = Served(process)
    try:
        server.port = _port(server)
        if is_awaited:
            server.await_status("ready")
        yield server
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert psutil.wait_procs(family, timeout=SECONDS)[1] == []  # the worker goes with its parent


def _port(server: Served) -> int:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if '"listening"' in line:
            return int(json.loads(line)["url"].rsplit(":", 1)[1])
    raise AssertionError(server.lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[Served]:
    """One server for the tests that leave it as it was."""
    limits = (
        "--max-header-bytes",
        "4096",
        "--header-timeout",
        "0.5",
        "--body-timeout",
        "0.5",
        "--max-connections",
        "20",
        "--keep-alive",
        "600",
    )
    with served(model, *limits) as server:
        yield server


def raw(server: Served, *pieces: bytes) -> bytes:
    """Sends the pieces and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


def assert_json_error(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["error"]["code"] == code


def test_a_request_is_answered_plain_and_streamed(shared: Served) -> None:
    with shared.http() as http:
        assert http.post("/v1/completions", json={"prompt": [ANSWER]}).json() == {"tokens": [11, 12, 13]}
        stream = http.post("/v1/completions", json={"prompt": [ANSWER], "stream": True}).text
    assert stream.split() == ["data:", "11", "data:", "12", "data:", "13", "data:", "[DONE]"]


def test_endless_headers_are_cut_off_with_a_431(shared: Served) -> None:
    answer = raw(shared, b"GET /health HTTP/1.1\r\nX: ", *[b"x" * 1000] * 100)
    assert_json_error(answer, 431, "headers_too_large")


def test_what_is_not_http_is_a_json_400(shared: Served) -> None:
    assert_json_error(raw(shared, b"\x16\x03\x01 hello\r\n\r\n"), 400, "invalid_http")


def test_garbage_behind_a_request_ends_both_without_a_bug_in_the_log(model: Path) -> None:
    body = json.dumps({"prompt": [SLOW], "max_tokens": 5}).encode()
    sound = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with served(model) as server, server.http() as http:
        assert_json_error(raw(server, sound * 3 + b"garbage\r\n\r\n"), 400, "invalid_http")
        idle = 'vllm:num_requests_running{model_name="tiny"} 0.0'
        eventually(lambda: idle in http.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert not [line for line in server.lines if "unhandled" in line]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "])
def test_a_client_that_never_finishes_its_headers_is_cut_off(shared: Served, sent: bytes) -> None:
    assert raw(shared, sent) == b""


def test_a_client_that_never_finishes_its_body_is_cut_off_with_an_answer(shared: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    assert_json_error(raw(shared, head), 400, "body_timeout")


def test_a_large_body_gets_its_413_although_the_client_is_still_sending(shared: Served) -> None:
    with shared.http() as http:
        answer = http.post("/v1/completions", content=b" " * (9 << 20), headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert http.get("/health").status_code == 200


def test_one_connection_too_many_is_answered_and_closed(shared: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", shared.port)))
        assert_json_error(raw(shared, b""), 503, "too_many_connections")
    eventually(lambda: shared_is_healthy(shared))


def shared_is_healthy(server: Served) -> bool:
    with server.http() as http:
        return http.get("/health").status_code == 200


def test_a_client_that_goes_away_from_a_stream_stops_its_work(shared: Served) -> None:
    with shared.http() as http:
        with http.stream(
            "POST", "/v1/completions", json={"prompt": [SLOW], "max_tokens": 9999, "stream": True}
        ) as stream:
            next(stream.iter_lines())
            assert "vllm:num_requests_running{" in http.get("/metrics").text
        idle = 'vllm:num_requests_running{model_name="tiny"} 0.0'
        eventually(lambda: idle in http.get("/metrics").text)


def test_health_answers_while_the_model_loads(tmp_path: Path) -> None:
    slow = model_directory(tmp_path / "slow", '{"load_seconds": 60}')
    with served(slow, is_awaited=False) as server, server.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").json() == {"status": "loading"}
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0


def test_a_killed_worker_fails_its_requests_at_once_and_is_replaced(model: Path) -> None:
    with served(model, *PATIENT) as server, server.http() as http:
        body = {"prompt": [STALL], "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as stream:
            worker = server.worker()
            worker.kill()
            assert '"worker_lost"' in stream.read().decode()
        server.await_status("ready")
        assert server.worker().pid != worker.pid
        assert http.post("/v1/completions", json={"prompt": [ANSWER]}).status_code == 200
        assert "polydecode_worker_restarts_total 1.0" in http.get("/metrics").text


def test_a_stuck_worker_makes_ready_say_so_while_health_stays_green(model: Path) -> None:
    flags = ("--stall-seconds", "0.3", "--stall-kill-seconds", "1.5")
    with served(model, *flags) as server, server.http() as http:
        with http.stream("POST", "/v1/completions", json={"prompt": [HANG], "stream": True}) as stream:
            server.await_status("stalled")
            assert http.get("/health").status_code == 200
            assert '"worker_lost"' in stream.read().decode()
        server.await_status("ready")


def test_sigterm_to_the_whole_group_drains_and_exits_0(model: Path) -> None:
    with served(model) as server, server.http() as http, server.http() as other:
        body = {"prompt": [SLOW], "max_tokens": 25, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.killpg(server.process.pid, signal.SIGTERM)
            time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)  # as make passes it on: still the same signal
            eventually(lambda: other.get("/ready").json() == {"status": "draining"})
            refused = other.post("/v1/completions", json={"prompt": [ANSWER]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            assert other.get("/health").status_code == 200
            assert [line for line in lines if line][-2:] == ["data: 35", "data: [DONE]"]
        assert server.end() == 0


def test_what_outlasts_the_drain_gets_an_error_event_and_the_exit_is_still_0(model: Path) -> None:
    with served(model, "--drain-seconds", "0.3") as server, server.http() as http:
        body = {"prompt": [SLOW], "max_tokens": 9999, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert server.end() == 0


def test_a_second_signal_exits_at_once_and_takes_the_worker_along(model: Path) -> None:
    with served(model) as server, server.http() as http:
        with http.stream("POST", "/v1/completions", json={"prompt": [STALL], "stream": True}):
            worker = server.worker()
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: http_status(server) == "draining")
            time.sleep(0.4)  # longer than two deliveries of one signal are apart
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 128 + signal.SIGTERM
        psutil.wait_procs([worker], timeout=SECONDS)
        assert not worker.is_running()


def http_status(server: Served) -> str:
    with server.http() as http:
        return str(http.get("/ready").json()["status"])


def test_the_worker_goes_when_the_server_is_killed(model: Path) -> None:
    with served(model) as server:
        worker = server.worker()
        server.process.kill()
        assert psutil.wait_procs([worker], timeout=SECONDS)[1] == []


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    broken = model_directory(tmp_path / "broken", '{"crash_message": "unknown architecture"}')
    with served(broken, is_awaited=False) as server:
        assert server.end() == 1
    assert "the model could not be loaded: unknown architecture" in server.lines[-1]


def test_a_worker_that_keeps_dying_ends_the_server(tmp_path: Path) -> None:
    doomed = model_directory(tmp_path / "doomed", f'{{"lives": "{tmp_path}/lives", "doomed_lives": 99}}')
    with served(doomed, "--worker-restarts", "1", "--restart-delay", "0.01", is_awaited=False) as server:
        assert server.end() == 1
    assert "lost 2 times in a row" in server.lines[-1]


def test_a_port_in_use_is_said_before_anything_is_loaded(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"polydecode: cannot listen on 127.0.0.1 port {port}: the port is in use\n"


def test_a_missing_model_is_said_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--model", str(tmp_path / "none"), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"polydecode: {tmp_path / 'none'} is not a directory\n")


def test_the_logs_hold_no_prompt_no_key_and_one_json_object_a_line(model: Path) -> None:
    with served(model, "--api-key", "hunter2", "--log-level", "debug") as server:
        headers = {"authorization": "Bearer hunter2", "x-request-id": "visible-id"}
        with server.http() as http:
            http.post("/v1/completions", json={"prompt": [ANSWER, 98765], "stream": True}, headers=headers)
            http.get("/%0a%1b[31mforged", headers=headers)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    text = "\n".join(server.lines)
    assert "visible-id" in text
    assert not [word for word in ("hunter2", "98765", "\x1b") if word in text]
    assert all(line.startswith(("{", "polydecode: ")) for line in server.lines if line.strip())


def test_the_server_process_never_imports_torch() -> None:
    heavy = ("torch", "transformers", "numpy")
    code = f"import sys, server.service, server.__main__; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_server_that_was_stopped_for_long_does_not_blame_its_worker(model: Path) -> None:
    """A paused virtual machine, a debugger, a minute of swapping: the worker was alive all the while."""
    with served(model, "--stall-seconds", "1", "--stall-kill-seconds", "3") as server:
        worker = server.worker()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(5)  # what the clock says while this process does not run
        server.process.send_signal(signal.SIGCONT)
        server.await_status("ready")
        assert server.worker().pid == worker.pid
        with server.http() as http:
            assert http.post("/v1/completions", json={"prompt": [ANSWER]}).status_code == 200
        assert server.worker().pid == worker.pid
