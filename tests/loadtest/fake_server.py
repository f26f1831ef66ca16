"""A server of canned answers on a real socket; `python -m tests.loadtest.fake_server PORT` runs it by itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Reply = Callable[[Request], list[bytes]]


def event(value: dict[str, Any] | str) -> bytes:
    return b"data: " + (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event({"choices": [{"index": 0, "text": piece, "finish_reason": None}], "usage": None})


def finish(prompt_tokens: int, completion_tokens: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    end = event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": None})
    return end + event({"choices": [], "usage": usage}) + event("[DONE]")


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def plain(status: str, body: bytes) -> list[bytes]:
    return [f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body]


def answer(request: Request) -> list[bytes]:
    """One piece of text a token; /ready and /v1/models as a server has them."""
    if request.path == "/v1/models":
        return plain("200 OK", b'{"object": "list", "data": [{"id": "fake"}]}')
    if request.method == "GET":
        return plain("200 OK", b"ok")
    wanted = request.body["max_tokens"]
    pieces = [chunked(text(" a")) for _ in range(wanted)]
    return [HEAD.encode(), *pieces, chunked(finish(7, wanted)) + b"0\r\n\r\n"]


@dataclass
class FakeServer:
    reply: Reply = answer
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _read(reader)
        self.requests.append(request)
        for piece in self.reply(request):
            writer.write(piece)
            await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(body or b"{}"))


@asynccontextmanager
async def serving(reply: Reply = answer) -> AsyncIterator[FakeServer]:
    fake = FakeServer(reply)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake


async def _main(port: int) -> None:
    async with await asyncio.start_server(FakeServer().serve, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
