"""What one client can do to a connection, over real sockets: pipelines, blank lines, trailers, answers nobody takes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.settings.settings import SettingsError, load
from tests.server.test_service import SECONDS, Served, assert_json_error, eventually, raw, served
from tests.server.world import model_directory

BODY = b'{"prompt": [1]}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PLAIN = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = ("--max-header-bytes", "4096", "--keep-alive", "1", "--send-timeout", "1", "--header-timeout", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model, *LIMITS) as running:
        yield running


def read_until(connection: socket.socket, end: bytes) -> None:
    answer = b""
    while end not in answer:
        answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")


def is_closed(connection: socket.socket) -> bool:
    """By the other side, gracefully or not; nothing is read but what would tell."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_few_requests_may_be_sent_at_once(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        connection.sendall(GET * 10)
        answer = b""
        while answer.count(b'{"status":"ok"}') < 10:
            answer += connection.recv(65536)
    assert answer.count(b"HTTP/1.1 200") == 10


def test_thousands_of_requests_at_once_are_refused_and_cost_nobody_anything(server: Served) -> None:
    answer = raw(server, GET * 50_000)
    assert b"too_many_pipelined" in answer
    assert answer.count(b"HTTP/1.1 200") < 100
    with server.http() as http:
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("more", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_a_connection_between_two_requests_does_not_live_for_ever(server: Served, more: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        connection.sendall(GET)
        read_until(connection, b'{"status":"ok"}')
        connection.sendall(more)
        while data := connection.recv(65536):  # until the server closes
            assert data


def test_blank_lines_do_not_put_the_end_off(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        connection.sendall(GET)
        read_until(connection, b'{"status":"ok"}')

        def is_over() -> bool:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"\r\n")
            return is_closed(connection)

        eventually(is_over)


def test_a_second_request_on_a_connection_is_answered(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        for _ in range(3):
            connection.sendall(b"\r\n" + PLAIN)
            read_until(connection, b'"tokens"')


def test_trailers_without_end_are_a_431(server: Served) -> None:
    assert_json_error(raw(server, CHUNKED, *[b"a: b\r\n" * 100] * 100), 431, "headers_too_large")
    assert_json_error(raw(server, CHUNKED, b"a: ", *[b"b" * 1000] * 100), 431, "headers_too_large")


def test_a_long_body_of_small_chunks_is_no_long_header(server: Served) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 5000)
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(server, head, *[chunks[i : i + 999] for i in range(0, len(chunks), 999)], b"0\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_trailers_are_not_taken_for_headers(model: Path) -> None:
    trailers = b"Authorization: Bearer sesame\r\nX-Request-Id: mine\r\n\r\n"
    with served(model, "--api-key", "sesame") as guarded:
        answer = raw(guarded, CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close") + trailers)
    assert_json_error(answer, 401, "invalid_api_key")
    assert b"mine" not in answer


def test_an_answer_that_nobody_takes_is_given_up(server: Served) -> None:
    """The client's buffer is small and so is ours: most of the answers wait in the server."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.settimeout(SECONDS)
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                connection.sendall(GET.replace(b"/health", b"/metrics") * 5)
                time.sleep(0.001)  # the server answers meanwhile
        eventually(lambda: _is_reset(connection))


def _is_reset(connection: socket.socket) -> bool:
    """Sending fails once the server has hung up, whatever waits to be read."""
    try:
        connection.send(b"\r\n")
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return False


def test_sigterm_beside_a_client_that_takes_no_answer_is_no_error(model: Path) -> None:
    with served(model, "--send-timeout", "600") as slow, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", slow.port))
        with slow.http() as http:
            size = len(http.get("/metrics").content)
        connection.sendall(GET.replace(b"/health", b"/metrics") * 16)
        with slow.http() as http:
            eventually(lambda: http.get("/health").status_code == 200)
        assert size > 10_000
        slow.process.send_signal(signal.SIGTERM)
        assert slow.end() == 0
    assert not [line for line in slow.lines if "Exception" in line or '"level": "error"' in line]


def test_an_upgrade_is_ignored_without_a_word(model: Path) -> None:
    asked = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with served(model) as running:
        assert raw(running, asked).startswith(b"HTTP/1.1 200")
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == 0
    assert not [line for line in running.lines if '"level": "warning"' in line]


def test_a_body_without_a_type_is_refused(server: Served) -> None:
    untyped = PLAIN.replace(b"Content-Type: application/json\r\n", b"Connection: close\r\n")
    assert_json_error(raw(server, untyped), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example."]
)
def test_a_local_server_is_not_reached_under_a_name_from_elsewhere(server: Served, host: str) -> None:
    with server.http() as http:
        answer = http.get("/v1/models", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "box", "box.local", "api.localhost"])
def test_local_names_reach_it(server: Served, host: str) -> None:
    with server.http() as http:
        assert http.get("/health", headers={"host": host}).status_code == 200


def test_a_name_that_is_allowed_and_any_name_with_a_key_reach_it(model: Path) -> None:
    with served(model, "--allowed-hosts", "api.example") as running, running.http() as http:
        assert http.get("/health", headers={"host": "API.example:80"}).status_code == 200
        assert http.get("/health", headers={"host": "evil.example"}).status_code == 403
    with served(model, "--api-key", "sesame") as running, running.http() as http:
        assert http.get("/health", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["--api-key", ""], {}),
        (["--api-key", ","], {}),
        (["--api-key", "secret,"], {}),
        (["--api-key", "k8JQ,7"], {}),
        ([], {"POLYDECODE_API_KEY": ""}),
        ([], {"POLYDECODE_API_KEY": " , "}),
    ],
)
def test_an_empty_key_does_not_open_the_server(flags: list[str], environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="api_key"):
        load(flags, environment)


def test_a_key_from_a_file_loses_its_line_end() -> None:
    assert load([], {"POLYDECODE_API_KEY": "secret\n"}).settings.api_keys == (b"secret",)


def test_json_of_errors_is_strict(server: Served) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        assert json.loads(http.get("/nowhere").content)["error"]["type"] == "not_found_error"
