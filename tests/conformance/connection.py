"""One bare TCP connection to the server: bytes out, bytes in, as slowly or as rudely as a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.running_server import RunningServer

CUT_SECONDS = 60.0  # until the server has cut us off; its own limits are a few seconds


class Connection:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """What the server no longer takes is lost without an error."""
        loop = asyncio.get_running_loop()
        try:
            for piece in pieces:
                await loop.sock_sendall(self._socket, piece)
                await asyncio.sleep(pause)
        except (ConnectionError, TimeoutError):
            return

    async def read(self, num_bytes: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, num_bytes)

    async def read_some(self) -> bytes:
        """The beginning of an answer, or nothing when the server cuts the connection."""
        async with asyncio.timeout(CUT_SECONDS):
            try:
                return await self.read(65536)
            except ConnectionError:
                return b""

    async def read_to_the_end(self) -> bytes:
        """Until the server closes; a reset is an end, too."""
        answer = b""
        async with asyncio.timeout(CUT_SECONDS):
            try:
                while data := await self.read(65536):
                    answer += data
            except ConnectionError:
                return answer
        return answer

    def reset(self) -> None:
        """RST instead of FIN: what is unsent is thrown away on both sides."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


@asynccontextmanager
async def connected(server: RunningServer, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
    """receive_buffer: bytes that the kernel takes in for a client that does not read."""
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", server.port))
        yield Connection(connection)


def post(path: str, body: Any, headers: Mapping[str, str] | None = None, *, keep_alive: bool = False) -> bytes:
    """A whole request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(data))}
    own |= {} if keep_alive else {"Connection": "close"}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in (own | dict(headers or {})).items())]
    return "\r\n".join([*lines, "", ""]).encode() + data
