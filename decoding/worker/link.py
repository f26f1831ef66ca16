"""The worker's end of the socket to the server: whole frames in, whole frames out."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Iterator

from decoding.contract.frames import FrameSplitter, FromWorker, ToWorker, decode_to_worker, encode


class ParentGone(Exception):
    """The server closed its end of the socket, or said Shutdown."""


class Link:
    """The worker's end of the socket: whole frames in, whole frames out."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._splitter = FrameSplitter()
        self._arrived: deque[ToWorker] = deque()  # and not taken yet
        self._arrival = select.poll()  # not `select.select`, which takes no descriptors from 1024 on
        self._arrival.register(connection, select.POLLIN)

    def send(self, frame: FromWorker) -> None:
        self._socket.sendall(encode(frame))

    def receive(self, timeout: float) -> Iterator[ToWorker]:
        """Frames that are there now, or that arrive within `timeout` seconds. Raises ParentGone at end of file."""
        if not self._arrived and self._arrival.poll(timeout * 1000):
            data = self._socket.recv(1 << 20)
            if not data:
                raise ParentGone
            self._arrived.extend(decode_to_worker(body) for body in self._splitter.push(data))
        while self._arrived:
            yield self._arrived.popleft()

    def receive_one(self) -> ToWorker:
        """The next frame, however long it takes."""
        while True:
            for frame in self.receive(60.0):
                return frame
