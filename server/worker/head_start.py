"""A decode worker started before the server has imported anything: each has seconds of imports, which run side by side.

It knows nothing of asyncio, whose import alone takes a while; `WorkerProcess.adopt` (`process.py`) takes it over.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

WORKER_COMMAND = (sys.executable, "-m", "decoding.worker.worker")


@dataclass(frozen=True, slots=True)
class Started:
    """A running `command FD`, and our end of the socket pair whose other end is FD."""

    process: subprocess.Popen[bytes]
    connection: socket.socket

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


class HeadStart:
    """While entered, one worker runs that can be taken once; at the end it is ended if nobody took it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._started: Started | None = None

    def __enter__(self) -> HeadStart:
        self._started = _start(self._command)
        return self

    def __exit__(self, *_: object) -> None:
        started = self.take(self._command)
        if started is not None:
            started.end()

    def take(self, command: Sequence[str]) -> Started | None:
        """The worker, if this is its command; who takes it ends it."""
        if tuple(command) != self._command:
            return None
        started, self._started = self._started, None
        return started


def _start(command: Sequence[str]) -> Started | None:
    """None where the system cannot: whoever wants a worker then starts one, and says what is wrong."""
    if not hasattr(os, "pidfd_open"):  # without it nobody hears of the worker's end
        return None
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        return None
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            return None
    return Started(process, ours)
