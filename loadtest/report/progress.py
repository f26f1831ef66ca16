"""The progress bar of runs, on standard error. Redraws twice a second: the cores belong to the server."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.outcome import Completed, Outcome
from loadtest.prompt import Phase
from loadtest.run import Watcher
from loadtest.scenario import Scenario


class Display:
    """One bar, of the run at hand, with its tokens and errors so far; notes stay above it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[tokens]} tokens"),
            TextColumn("[red]{task.fields[errors]}"),
            console=Console(file=sys.stderr),
            refresh_per_second=2,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, title: str, scenario: Scenario) -> Watcher:
        """A new bar in place of the last; what it returns is told of each answer."""
        for earlier in self._progress.task_ids:
            self._progress.remove_task(earlier)
        total = scenario.warmup + scenario.requests
        task = self._progress.add_task(title, total=total, tokens=0, errors="")
        tokens = errors = 0

        def watch(phase: Phase, outcome: Outcome) -> None:
            nonlocal tokens, errors
            if isinstance(outcome, Completed):
                tokens += outcome.completion_tokens
            else:
                errors += 1
            description = f"{title} [dim]warm-up[/dim]" if phase == "warmup" else title
            self._progress.update(
                task, advance=1, description=description, tokens=tokens, errors=f"{errors} errors" if errors else ""
            )

        return watch

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)
