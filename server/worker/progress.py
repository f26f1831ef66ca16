"""Shows on the terminal how far start-up is: a bar on a tty, else a line for each stage."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn


class ProgressDisplay(Protocol):
    def show(self, stage: str, fraction: float) -> None:
        """`fraction` runs from 0 to 1 within a stage."""

    def close(self) -> None:
        """No more follows. Idempotent."""


class LineDisplay:
    """One line when a stage begins and one when it is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ("", False)

    def show(self, stage: str, fraction: float) -> None:
        step = (stage, fraction >= 1)
        if step != self._last:
            self._last = step
            print(f"polydecode: {stage}{': done' if step[1] else ' ...'}", file=self._stream, flush=True)

    def close(self) -> None:
        self._last = ("", False)


class BarDisplay:
    """A bar that is redrawn in place and vanishes at the end."""

    def __init__(self, stream: TextIO) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(file=stream, force_terminal=True), transient=True)
        self._task: TaskID | None = None

    def show(self, stage: str, fraction: float) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(stage, total=1.0)
        self._progress.update(self._task, description=stage, completed=fraction)

    def close(self) -> None:
        if self._task is not None:
            self._progress.stop()
            self._task = None


def progress_display(*, is_terminal: bool) -> ProgressDisplay:
    """On standard error."""
    return BarDisplay(sys.stderr) if is_terminal else LineDisplay(sys.stderr)
