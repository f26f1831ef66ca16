"""One life of the decode worker: the child process and the socket pair it inherits, until either end closes.

It starts the process, cuts the byte stream into frames and hands each to `on_frame`, writes without ever blocking the
event loop, and reaps the child. Restarting and what frames mean belong to `server/worker/mailbox.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec

from decoding.contract.frames import FrameSplitter, FromWorker, ToWorker, decode_from_worker, encode
from server.worker.head_start import Started

WRITE_HIGH_WATER = 4 << 20  # unsent bytes above which new requests are refused
GRACE_SECONDS = 1.0


class _Channel(asyncio.Protocol):
    """Our end of the socket pair. `closed` resolves with the reason, once."""

    def __init__(self, on_frame: Callable[[FromWorker], None]) -> None:
        self._on_frame = on_frame
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None
        self.is_congested = False
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        for frame in self._frames(data):
            self._on_frame(frame)

    def _frames(self, data: bytes) -> list[FromWorker]:
        try:
            return [decode_from_worker(body) for body in self._splitter.push(data)]
        except (ValueError, msgspec.MsgspecError):
            self._end("sent an unreadable frame")
            return []

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("closed its end")

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.closed.done():
            self._transport.write(data)

    def _end(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Child(Protocol):
    """The part of asyncio's subprocesses that is used here."""

    async def wait(self) -> int: ...

    def kill(self) -> None: ...


class _Adopted:
    """A child that asyncio did not start. Its end is heard of by a descriptor."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def wait(self) -> int:
        loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
        descriptor = os.pidfd_open(self._process.pid)
        try:
            loop.add_reader(descriptor, has_ended.set)
            await has_ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()


class WorkerProcess:
    """A running worker; made by `spawn` or `adopt`. After `ended` resolves, `reap` must be awaited."""

    def __init__(self, process: _Child, channel: _Channel) -> None:
        self._process = process
        self._channel = channel
        self._exited = asyncio.create_task(process.wait())

    @classmethod
    async def spawn(cls, command: Sequence[str], on_frame: Callable[[FromWorker], None]) -> WorkerProcess:
        """Starts `command FD`. It gets a session of its own: a terminal's Ctrl-C must not end it before the drain."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_error:
            on_error.callback(ours.close)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                )
            _, channel = await asyncio.get_running_loop().create_unix_connection(lambda: _Channel(on_frame), sock=ours)
            on_error.pop_all()
        return cls(process, channel)

    @classmethod
    async def adopt(cls, started: Started, on_frame: Callable[[FromWorker], None]) -> WorkerProcess:
        """Takes over a worker that runs already; should that fail, it is ended."""
        try:
            loop = asyncio.get_running_loop()
            _, channel = await loop.create_unix_connection(lambda: _Channel(on_frame), sock=started.connection)
        except BaseException:
            started.end()
            raise
        return cls(_Adopted(started.process), channel)

    @property
    def is_congested(self) -> bool:
        """The worker does not read what it is sent."""
        return self._channel.is_congested

    def send(self, *frames: ToWorker) -> None:
        """Queues the frames; without effect once the worker has ended."""
        self._channel.write(b"".join(encode(frame) for frame in frames))

    def send_encoded(self, data: bytes) -> None:
        self._channel.write(data)

    async def ended(self, seconds: float) -> bool:
        """Whether the worker's socket or process ended within so many seconds."""
        waited = {self._channel.closed, cast("asyncio.Future[str]", self._exited)}
        done, _ = await asyncio.wait(waited, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
        if done and not self._channel.closed.done():  # its last words may still be in the socket
            await asyncio.wait({self._channel.closed}, timeout=GRACE_SECONDS)
        return bool(done)

    async def reap(self) -> str:
        """Makes sure that the process is gone, killing it if it lingers; says how it ended."""
        done, _ = await asyncio.wait({self._exited}, timeout=GRACE_SECONDS)
        if not done:
            self.kill()
        status = await self._exited
        self._channel.abort()
        return _ending(status)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
