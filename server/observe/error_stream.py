"""The process's standard error, made so that nobody who writes to it ever waits for whoever reads it.

File descriptor 2 of this process, and so of every child and library, becomes a pipe that a thread here always empties.
A second thread passes on what came, and alone waits for the terminal, file or pipe that standard error was at the
start. Behind a reader that stands still at most MAX_PENDING bytes are kept; later lines are dropped whole and counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator

MAX_PENDING = 1 << 18  # bytes that wait for the reader: a thousand lines and more
_CHUNK = 1 << 16
_LAST_WORDS_SECONDS = 1.0  # how long the end waits for the reader to take the rest


class ErrorStream:
    """Takes the place of descriptor 2 from `open` to `close`. The threads are the only ones that touch `_target`."""

    def __init__(self, target: int) -> None:
        self.is_terminal = os.isatty(target)
        self._target = target
        self._pending: deque[bytes] = deque()
        self._num_pending = 0  # bytes that are queued or being written
        self._num_dropped = 0
        self._is_dropping = False  # amid a line that was dropped in part
        self._has_reader = True
        self._has_ended = False
        self._changed = threading.Condition()

    @property
    def num_dropped(self) -> int:
        """Lines that nobody was there to read."""
        return self._num_dropped

    def take(self, data: bytes) -> None:
        """Queue what was written, or drop it where too much waits already. Never blocks."""
        with self._changed:
            if not self._has_reader or self._num_pending + len(data) > MAX_PENDING:
                self._drop(data)
            elif self._is_dropping:
                self._resume(data)
            else:
                self._queue(data)

    def give(self) -> None:
        """The passing on: until `end`, wait for what comes and for whoever reads it."""
        dropped = 0
        while (data := self._next()) is not None:
            self._has_reader = self._has_reader and _write(self._target, data)
            with self._changed:
                self._num_pending -= len(data)
                news, is_idle = self._num_dropped - dropped, self._num_pending == 0
                self._changed.notify_all()
            if news and is_idle and self._has_reader:
                dropped += news
                import structlog  # noqa: PLC0415 - the stream stands before the server's imports begin

                structlog.get_logger("logs").warning("log lines dropped, for nobody read them", lines=news)

    def end(self) -> None:
        """What comes from now on is not waited for; the rest has a moment left."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_pending == 0, _LAST_WORDS_SECONDS)
            self._has_ended = True
            self._changed.notify_all()

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._has_ended)
            return self._pending.popleft() if self._pending else None

    def _queue(self, data: bytes) -> None:
        self._pending.append(data)
        self._num_pending += len(data)
        self._changed.notify_all()

    def _drop(self, data: bytes) -> None:
        if not self._is_dropping and self._pending and not self._pending[-1].endswith(b"\n"):
            self._queue(b"\n")  # the line whose rest is dropped
        self._num_dropped += data.count(b"\n")
        self._is_dropping = not data.endswith(b"\n")

    def _resume(self, data: bytes) -> None:
        """Go on behind the line that was dropped in part."""
        _, line_end, whole = data.partition(b"\n")
        self._num_dropped += len(line_end)
        self._is_dropping = not line_end
        if whole:
            self._queue(whole)


@contextlib.contextmanager
def never_waiting() -> Iterator[ErrorStream]:
    """Descriptor 2 does not block while the block runs; afterwards it is what it was."""
    ensure_standard_streams()
    target = os.dup(2)
    stream = ErrorStream(target)
    source, ours = os.pipe()
    os.dup2(ours, 2)
    os.close(ours)
    taking = threading.Thread(target=_take_all, args=(source, stream), name="stderr taken", daemon=True)
    taking.start()
    threading.Thread(target=stream.give, name="stderr given", daemon=True).start()
    try:
        yield stream
    finally:
        sys.stderr.flush()
        os.dup2(target, 2)
        taking.join(_LAST_WORDS_SECONDS)  # until the pipe has no writer and is empty; a child that lingers may hold it
        stream.end()


def ensure_standard_streams() -> None:
    """Started with closed descriptors, a socket of ours could become standard error: put the null device there."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _take_all(source: int, stream: ErrorStream) -> None:
    while data := os.read(source, _CHUNK):
        stream.take(data)
    os.close(source)


def _write(target: int, data: bytes) -> bool:
    """Whether there was still somebody to read it. Waits as long as it takes."""
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:  # whoever started us made it so, and shares it with others
            select.select((), (target,), ())
        except OSError:
            return False
    return True
