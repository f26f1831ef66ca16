"""Bodies are held to a total while they come in, and what each took is given back however it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.body_limit import BodyLimit
from server.http.body_memory import FREE_BYTES, BodyMemory
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings
from server.settings.settings import SettingsError, load
from server.wire.body import read_body
from tests.server.test_service import SECONDS, Served, assert_json_error, eventually, served
from tests.server.world import model_directory

MIB = 1 << 20
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"


class Edge:
    """A BodyLimit in front of an app that parses what it gets, and then waits until `answer` is set."""

    def __init__(self, max_buffered_body_bytes: int) -> None:
        known = NetworkSettings(body_timeout=SECONDS, max_body_bytes=MIB)
        settings = known.model_copy(update={"max_buffered_body_bytes": max_buffered_body_bytes})
        self.limit = BodyLimit(self._app, settings)
        self.answer = asyncio.Event()
        self.parsed = asyncio.Event()

    @property
    def num_held(self) -> int:
        return self.limit._memory._num_bytes

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if scope["path"] == "/parse":
            await read_body(request, Limits(), dict)
            self.parsed.set()
            asking = asyncio.ensure_future(request.receive())
            await self.answer.wait()
            asking.cancel()
        if scope["path"] == "/fail":
            raise RuntimeError
        await JSONResponse({})(scope, receive, send)


class Client:
    """One request of which the test sends the body piece by piece."""

    def __init__(self, edge: Edge, path: str = "/parse") -> None:
        self._pieces: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        self.task = asyncio.ensure_future(edge.limit(scope, self._pieces.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def send(self, body: bytes, *, more_body: bool = True) -> None:
        await self._tell({"type": "http.request", "body": body, "more_body": more_body})

    async def vanish(self) -> None:
        await self._tell({"type": "http.disconnect"})

    async def _tell(self, message: Message) -> None:
        self._pieces.put_nowait(message)
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def status(self) -> Any:
        return self.sent[0]["status"]


async def test_the_total_holds_whoever_sends() -> None:
    edge = Edge(100_000)
    clients = [Client(edge) for _ in range(20)]
    for client in clients:
        for _ in range(10):
            await client.send(b" " * 10_000)
            assert edge.num_held <= 100_000
    refused = [client for client in clients if client.task.done()]
    assert {client.status for client in refused} == {503}
    assert dict(refused[0].sent[0]["headers"])[b"retry-after"] == b"1"
    assert b'"too_many_bodies"' in refused[0].sent[1]["body"]
    assert len(clients) - len(refused) == 100_000 // (100_000 - FREE_BYTES)
    for client in clients:
        await client.vanish()
    assert edge.num_held == 0


async def test_small_bodies_pass_although_large_ones_fill_it() -> None:
    edge = Edge(100_000)
    large = Client(edge)
    await large.send(b" " * (FREE_BYTES + 100_000))
    assert edge.num_held == 100_000
    edge.answer.set()
    small = Client(edge)
    await small.send(b"{}".ljust(FREE_BYTES), more_body=False)
    await small.task
    assert small.status == 200
    await large.vanish()


@pytest.mark.parametrize("end", ["vanished", "refused", "too large", "cancelled", "failed", "unread", "answered"])
async def test_what_a_body_took_is_given_back(end: str) -> None:
    edge = Edge(MIB)
    edge.answer.set()
    client = Client(edge, {"failed": "/fail", "unread": "/unread"}.get(end, "/parse"))
    await client.send(b" " * 200_000)
    assert edge.num_held == 200_000 - FREE_BYTES
    if end == "vanished":
        await client.vanish()
    elif end == "refused":
        other = Client(edge)
        await other.send(b" " * (MIB - 200_000))
        await client.send(b" " * 400_000)
        assert client.status == 503
        await other.vanish()
    elif end == "too large":
        await client.send(b" " * MIB)
        assert client.status == 413
    elif end == "cancelled":
        client.task.cancel()
    else:
        await client.send(b"{}", more_body=False)
    await asyncio.wait({client.task}, timeout=SECONDS)
    assert client.task.done()
    assert edge.num_held == 0


async def test_a_long_answer_does_not_keep_the_body() -> None:
    edge = Edge(MIB)
    client = Client(edge)
    await client.send(b"{}".ljust(200_000), more_body=False)
    await edge.parsed.wait()
    await asyncio.sleep(0)
    assert edge.num_held == 0
    assert not client.task.done()
    edge.answer.set()
    await client.task


async def test_a_parsed_body_is_not_kept_by_its_request() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    request = Request({"type": "http"}, receive)
    assert await read_body(request, Limits(), dict) == {}
    with pytest.raises(RuntimeError, match="consumed"):
        await request.body()


def test_a_body_that_found_no_room_keeps_what_it_had() -> None:
    memory = BodyMemory(10)
    held, other = memory.new_body(), memory.new_body()
    held.add(b" " * (FREE_BYTES + 8))
    with pytest.raises(ApiError):
        other.add(b" " * (FREE_BYTES + 3))
    assert (memory._num_bytes, other.num_bytes) == (8, 0)
    held.release()
    held.release()
    assert memory._num_bytes == 0


def test_the_total_has_room_for_one_body_at_least() -> None:
    with pytest.raises(SettingsError, match="max_buffered_body_bytes"):
        load(["--max-body-bytes", "2000000", "--max-buffered-body-bytes", "1000000"], {})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = model_directory(tmp_path_factory.mktemp("models") / "tiny")
    flags = ("--max-body-bytes", str(MIB), "--max-buffered-body-bytes", str(2 * MIB), "--body-timeout", "600")
    with served(model, *flags) as running:
        yield running


@contextmanager
def unfinished(server: Served, num_bytes: int) -> Iterator[socket.socket]:
    """A client that has sent all of its body but the last byte."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
        connection.sendall(HEAD % num_bytes + b"\r\n" + b" " * (num_bytes - 1))
        yield connection


def is_taken(server: Served) -> bool:
    """Whether a large body finds room."""
    body = b'{"prompt": [1]}'.ljust(MIB)
    with server.http() as http:
        answer = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200 or answer.json()["error"]["code"] == "too_many_bodies"
    return answer.status_code == 200


def test_clients_that_vanish_amid_their_bodies_give_the_room_back(server: Served) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(unfinished(server, MIB))
            eventually(lambda: not is_taken(server))
            with server.http() as http:
                assert http.post("/v1/completions", json={"prompt": [1]}).status_code == 200
        eventually(lambda: is_taken(server))


def test_who_finds_no_room_gets_an_answer_while_sending(server: Served) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(unfinished(server, MIB))
        eventually(lambda: not is_taken(server))
        with unfinished(server, MIB) as late:
            late.sendall(b" ")
            answer = b""
            while b"}}" not in answer:
                answer += late.recv(65536)
    assert_json_error(answer, 503, "too_many_bodies")
    assert b"retry-after: 1\r\n" in answer
