"""A server that a comparison starts itself: a command in a process group of its own, paused, resumed, ended.

Knows when the process is alive, not whether the server is ready: that is asked over HTTP by whoever holds a client.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import tempfile
from pathlib import Path

_GRACE_SECONDS = 15.0
_LOG_LINES = 20


class ServerDied(RuntimeError):
    """The command ended by itself; the message holds the end of what it printed."""


class ServerProcess:
    """One command, at most one process group at a time."""

    def __init__(self, command: str) -> None:
        self._argv = shlex.split(command)
        self._process: asyncio.subprocess.Process | None = None
        self._log: Path | None = None

    @property
    def pid(self) -> int | None:
        """Of the command while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix="loadtest-server-", suffix=".log")
        self._log = Path(name)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raises ServerDied if the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise ServerDied(f"{shlex.join(self._argv)} ended with {self._process.returncode}:\n{self._log_tail()}")

    def pause(self) -> None:
        """Takes the whole group off the processors; its memory, connections and caches stay."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Ends the group: politely, then for certain."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _GRACE_SECONDS)
            except TimeoutError:
                pass
            finally:
                # Also when we are cancelled meanwhile, and for children that outlive the group's leader.
                self._signal(signal.SIGKILL)
            await self._process.wait()
        self._process = None
        if self._log is not None:
            self._log.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
