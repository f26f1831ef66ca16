"""A table of many servers, for people and as JSON: a row a server, a column a scenario. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from loadtest.compare import FIGURES
from loadtest.report.report import context, target_document
from loadtest.table import Column
from loadtest.target import Target


def table_of(columns: Sequence[Column], names: Sequence[str], against: str) -> Table:
    """The median rate of each server, and in brackets the median of its ratios by `against`."""
    table = Table("", title=f"median of {_rounds(columns)}; in brackets: by {escape(against)}")
    for column in columns:
        table.add_column(f"{column.scenario.name}, {column.figure.unit}", justify="right")
    for name in names:
        table.add_row(escape(name), *(_cell(column, name, against) for column in columns))
    table.add_section()
    for name in names:
        faults = [_faults(column, name) for column in columns]
        if any(faults):
            table.add_row(f"[red]faults of {escape(name)}[/red]", *faults)
    return table


def _rounds(columns: Sequence[Column]) -> str:
    rounds = max((len(turns) for column in columns for turns in column.turns.values()), default=0)
    return f"{rounds} round{'' if rounds == 1 else 's'}"


def _cell(column: Column, name: str, against: str) -> str:
    rate, ratio = column.median(name, column.figure), column.ratio(name, against)
    if rate is None:
        return "–"
    bracket = "–" if ratio is None else f"{ratio:.2f}"
    return f"{rate:.{2 if column.figure.unit == 'req/s' else 1}f} ({bracket})"


def _faults(column: Column, name: str) -> str:
    """Errors, and answers that are shorter than asked: a rate beside them misleads."""
    summaries = [turn.summary for turn in column.turns.get(name, ())]
    errors = sum(summary.requests - summary.completed for summary in summaries)
    short = sum(summary.short for summary in summaries)
    counts = [f"{count} {what}" for count, what in ((errors, "errors"), (short, "short")) if count]
    return ", ".join(counts)


def table_document(columns: Sequence[Column], targets: Mapping[str, Target]) -> dict[str, Any]:
    """Every turn, and the medians of each server's figures."""
    return {
        **context(),
        "contenders": {name: target_document(target) for name, target in targets.items()},
        "columns": [{**msgspec.to_builtins(column), "medians": _medians(column)} for column in columns],
    }


def _medians(column: Column) -> dict[str, dict[str, float]]:
    return {name: {f.name: m for f in FIGURES if (m := column.median(name, f)) is not None} for name in column.turns}
