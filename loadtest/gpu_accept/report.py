"""What was found, step by step: kept, written as JSON after each line, and shown as a table.

Knows nothing of what is measured. The file is replaced as a whole, so that whoever ends this process, and whenever,
leaves a readable one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TABLE_CHARACTERS = 12_000
"""Of the table, at most: a box may hand back no more than the end of what was printed."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    is_passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Figure:
    """value in unit; floor: what the machine could reach, in the same unit."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """Of the limit: 1 is all that the machine can do."""
        if self.floor is None:
            return None
        return self.value / self.floor if self.unit.endswith("/s") else self.floor / self.value


Line = Check | Figure


@dataclass(slots=True)
class StepReport:
    """skipped, error: why there is nothing more."""

    name: str
    is_check: bool
    lines: list[Line] = field(default_factory=list)
    skipped: str | None = None
    error: str | None = None
    seconds: float | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether something is not right, rather than only slow or unknown."""
        return any(isinstance(line, Check) and not line.is_passed for line in self.lines) or (
            self.is_check and self.error is not None
        )


class Report:
    """header: of what, and where."""

    def __init__(self, header: dict[str, Any], path: Path | None) -> None:
        self.header = header
        self.steps: list[StepReport] = []
        self._path = path

    @property
    def is_right(self) -> bool:
        return not any(step.is_wrong for step in self.steps)

    def write(self) -> None:
        if self._path is None:
            return
        document = self.header | {"is_right": self.is_right, "steps": [_plain(step) for step in self.steps]}
        unfinished = self._path.with_name(self._path.name + ".part")
        unfinished.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(unfinished, self._path)

    def table(self) -> str:
        """What is wrong first; at most TABLE_CHARACTERS, of the rest as much as there is room for."""
        wrong = [f"WRONG {line}" for step in self.steps if step.is_wrong for line in _faults(step)]
        about = ", ".join(f"{name} {value}" for name, value in self.header.items())
        lines = [about, *wrong, *(line for step in self.steps for line in _shown(step))]
        return _cut([*lines, self._verdict()])

    def _verdict(self) -> str:
        if not self.is_right:
            return f"NOT RIGHT: {sum(step.is_wrong for step in self.steps)} steps"
        untried = [step.name for step in self.steps if step.is_check and step.skipped is not None]
        return f"right, as far as it was tried: not {', '.join(untried)}" if untried else "right"


def _plain(step: StepReport) -> dict[str, Any]:
    own = asdict(step)
    own["lines"] = [asdict(line) | ({"share": line.share} if isinstance(line, Figure) else {}) for line in step.lines]
    return own


def _faults(step: StepReport) -> Iterator[str]:
    for line in step.lines:
        if isinstance(line, Check) and not line.is_passed:
            yield f"{step.name}: {line.name}: {line.detail}"
    if step.error is not None:
        yield f"{step.name}: {step.error}"


def _shown(step: StepReport) -> Iterator[str]:
    seconds = "" if step.seconds is None else f" ({step.seconds:.0f} s)"
    yield f"- {step.name}{seconds}"
    yield from (f"  {shown(line)}" for line in step.lines)
    if step.skipped is not None:
        yield f"  skipped: {step.skipped}"
    if step.error is not None:
        yield f"  failed: {step.error}"


def shown(line: Line) -> str:
    if isinstance(line, Check):
        return f"{'ok  ' if line.is_passed else 'FAIL'} {line.name}: {line.detail}"
    share = "" if line.share is None else f" {line.share:5.0%} of the limit"
    return f"{line.name:34} {line.value:>11,.2f} {line.unit}{share}  {line.note}".rstrip()


def _cut(lines: list[str]) -> str:
    """The first lines and the last one."""
    left = "…"
    room = TABLE_CHARACTERS - len(lines[-1]) - len(left) - 2
    kept: list[str] = []
    for line in lines[:-1]:
        short = line[:400]
        room -= len(short) + 1
        if room < 0:
            return "\n".join([*kept, left, lines[-1]])
        kept.append(short)
    return "\n".join([*kept, lines[-1]])
