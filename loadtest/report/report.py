"""Turns runs and comparisons into tables for people and JSON for programs. Measures nothing. No API key gets in."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from loadtest.compare import FIGURES, Comparison, Figure, Pair, ratio, spread
from loadtest.curve import CURVES, Growth
from loadtest.run import Run
from loadtest.scenario import SCENARIOS, Closed, Open
from loadtest.statistics import Percentiles, Summary
from loadtest.target import Target

_WISH = {"higher": "higher is better", "lower": "lower is better", "equal": "equal, or the rates mislead"}


def scenario_table() -> Table:
    table = Table("scenario", "load", "requests", "warm-up", "what")
    for scenario in SCENARIOS:
        table.add_row(
            scenario.name, _load(scenario.load), str(scenario.requests), str(scenario.warmup), scenario.description
        )
    for curve in CURVES:
        table.add_row(curve.name, f"curve, {curve.values[0]}…{curve.values[-1]}", "", "", curve.description)
    return table


def growth_table(growth: Growth) -> Table:
    """A row for each point; the gain is the throughput's, over the point before."""
    table = Table(title=f"{growth.curve.name}: {growth.curve.description}")
    names = ("output, tok/s", "gain", "prompt + output, tok/s", "TTFT p50, ms", "ITL p50, ms", "ITL p99, ms", "errors")
    for name in (growth.curve.axis, *names):
        table.add_column(name, justify="right")
    before: float | None = None
    for point in growth.points:
        summary = point.summary
        rate, gaps = summary.output_tokens_per_second, _milliseconds(summary.inter_token_latency)
        gain = _number(rate / before) if before else "–"
        wait = _milliseconds(summary.time_to_first_token)[0]
        total, errors = _number(summary.total_tokens_per_second), str(summary.requests - summary.completed)
        table.add_row(str(point.x), _number(rate), gain, total, wait, gaps[0], gaps[2], errors)
        before = rate
    return table


def growth_document(growths: list[Growth], target: Target, seed: int) -> dict[str, Any]:
    return {
        **context(),
        "target": target_document(target),
        "seed": seed,
        "curves": [
            {
                "name": growth.curve.name,
                "description": growth.curve.description,
                "axis": growth.curve.axis,
                "points": msgspec.to_builtins(growth.points),
            }
            for growth in growths
        ],
    }


def _load(load: Closed | Open) -> str:
    match load:
        case Closed(streams):
            return f"closed, {streams} at once"
        case Open(rate):
            return f"open, {rate:g}/s"


def run_table(run: Run) -> Table:
    summary = run.summary
    table = Table("figure", "p50", "p90", "p99", title=f"{run.scenario.name}: {run.scenario.description}")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("output throughput, tok/s", f"{summary.output_tokens_per_second:.1f}")
    table.add_row("prompt + output, tok/s", f"{summary.total_tokens_per_second:.1f}")
    table.add_row("requests/s", f"{summary.requests_per_second:.3f}")
    for name, values in _latencies(summary):
        table.add_row(f"{name}, ms", *_milliseconds(values))
    table.add_section()
    for name, text in _counts(run):
        table.add_row(name, text)
    return table


def _latencies(summary: Summary) -> tuple[tuple[str, Percentiles | None], ...]:
    return (
        ("time to first token", summary.time_to_first_token),
        ("inter-token latency", summary.inter_token_latency),
        ("time per output token", summary.time_per_output_token),
        ("end to end", summary.end_to_end),
    )


def _milliseconds(values: Percentiles | None) -> tuple[str, str, str]:
    if values is None:
        return ("–", "–", "–")
    return (f"{values.p50 * 1000:.1f}", f"{values.p90 * 1000:.1f}", f"{values.p99 * 1000:.1f}")


def _counts(run: Run) -> list[tuple[str, str]]:
    summary = run.summary
    rows = [
        ("completed / requests", f"{summary.completed} / {summary.requests}"),
        ("prompt tokens", str(summary.prompt_tokens)),
        ("output tokens", str(summary.completion_tokens)),
        ("answers shorter than asked", str(summary.short)),
        ("seconds", f"{summary.seconds:.2f}"),
        ("client, share of a core", f"{summary.client_cpu_share:.1%}"),
        ("seed", str(run.seed)),
    ]
    return rows + [
        (f"error {error.kind}", escape(f"{error.count}  ({error.example[:80]})")) for error in summary.errors
    ]


def comparison_table(comparison: Comparison) -> RenderableType:
    """Every figure pair by pair, then the ratios' median and range."""
    scenario = comparison.scenario
    table = Table("figure", "pair", "A", "B", "A / B", title=f"{scenario.name}: {scenario.description}")
    for column in table.columns[1:]:
        column.justify = "right"
    for figure in FIGURES:
        _add_figure(table, figure, comparison.pairs)
    for label, summaries in _sides(comparison.pairs):
        table.add_row(f"errors of {label}", "all", str(sum(s.requests - s.completed for s in summaries)))
        table.add_row(f"short answers of {label}", "all", str(sum(s.short for s in summaries)))
    return table


def _add_figure(table: Table, figure: Figure, pairs: tuple[Pair, ...]) -> None:
    overall = spread(figure, pairs)
    if overall is None:
        return
    for number, pair in enumerate(pairs, 1):
        title = f"{figure.name}, {figure.unit}" if number == 1 else ""
        a, b = figure.read(pair.a), figure.read(pair.b)
        table.add_row(title, str(number), _number(a), _number(b), _number(ratio(figure, pair.a, pair.b), digits=3))
    verdict = f"[bold]{overall.median:.3f}[/bold] ({overall.low:.3f}–{overall.high:.3f})"
    table.add_row(f"[dim]{_WISH[figure.better]}[/dim]", "median", "", "", verdict, end_section=True)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _sides(pairs: tuple[Pair, ...]) -> tuple[tuple[str, list[Summary]], ...]:
    return (("A", [pair.a.summary for pair in pairs]), ("B", [pair.b.summary for pair in pairs]))


def run_document(run: Run, target: Target) -> dict[str, Any]:
    """The JSON of a run: everything needed to judge it or to play it again, each request's times included."""
    return {
        **context(),
        "target": target_document(target),
        "scenario": msgspec.to_builtins(run.scenario),
        "load": _load(run.scenario.load),
        "seed": run.seed,
        "summary": msgspec.to_builtins(run.summary),
        "outcomes": msgspec.to_builtins(run.outcomes),
    }


def comparison_document(comparisons: list[Comparison], a: Target, b: Target) -> dict[str, Any]:
    return {
        **context(),
        "a": target_document(a),
        "b": target_document(b),
        "comparisons": [_comparison(comparison) for comparison in comparisons],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    ratios = {figure.name: spread(figure, comparison.pairs) for figure in FIGURES}
    return {**msgspec.to_builtins(comparison), "ratios": msgspec.to_builtins(ratios)}


def context() -> dict[str, Any]:
    """When and where something was measured."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def target_document(target: Target) -> dict[str, Any]:
    """Without the key."""
    return {
        "url": target.url,
        "endpoint": target.endpoint,
        "model": target.model,
        "dialect": target.dialect.name,
        "extra": dict(target.extra),
    }


def write_json(document: dict[str, Any], file: Path) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
