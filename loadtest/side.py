"""A server of a comparison: where it is, and how to start it if it is ours to start. A table's are read from a file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import msgspec

from loadtest.scenario import Scenario
from loadtest.target import Endpoint, Target, base_url, dialect


@dataclass(frozen=True, slots=True)
class Side:
    target: Target
    ready_path: str
    command: str | None

    def can_play(self, scenario: Scenario) -> bool:
        """Whether the server has all that the scenario asks for: not every one has beams."""
        return bool(self.target.dialect.beam_counts) or all(shape.beams == 1 for shape in scenario.shapes)


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    command: str | None = None
    dialect: str = "polydecode"
    ready: str | None = None
    model: str | None = None
    endpoint: Endpoint = "completions"
    extra: dict[str, Any] = {}


def read_sides(file: Path, only: Sequence[str]) -> dict[str, Side]:
    """The file's servers by name, in the order of `only`; all in the file's if it is empty.

    Raises ValueError for what the file should not hold and LookupError for a name that it lacks.
    """
    try:
        entries = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), dict[str, _Entry])
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not entries:
        raise ValueError(f"{file} names no server")
    names = only or tuple(entries)
    if missing := [name for name in names if name not in entries]:
        raise LookupError(f"{file} has no {', '.join(missing)}; it has {', '.join(entries)}")
    return {name: _side(name, entries[name], os.environ) for name in names}


def _side(name: str, entry: _Entry, environment: Mapping[str, str]) -> Side:
    kind = dialect(entry.dialect)
    target = Target(base_url(entry.url), kind, entry.endpoint, entry.model, extra=entry.extra)
    return Side(target, entry.ready or kind.ready_path, _filled(name, entry.command, environment))


def _filled(name: str, command: str | None, environment: Mapping[str, str]) -> str | None:
    """The command with its $VARIABLES: where a peer is installed is no matter of the file's."""
    try:
        return None if command is None else Template(command).substitute(environment)
    except KeyError as error:
        raise ValueError(f"the command of {name} needs the environment variable {error.args[0]}") from error
