"""A soak as a table for people and as JSON for programs. Judges nothing but what must be nought."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from loadtest.report.report import context, target_document
from loadtest.soak.exchange import Verdict
from loadtest.soak.soaker import Exchange, Soak
from loadtest.soak.trend import Trend
from loadtest.target import Target

_VERDICTS: tuple[Verdict, ...] = ("answered", "refused", "failed", "left", "unanswered")
_EXAMPLES = 5


def soak_tables(soak: Soak, found: list[Trend]) -> RenderableType:
    return Group(_traffic_table(soak), _trend_table(found), _count_table(soak))


def _traffic_table(soak: Soak) -> Table:
    table = Table("traffic", "sent", *_VERDICTS, "statuses", title=f"{soak.plan.seconds / 60:g} minutes")
    for kind in sorted({exchange.kind for exchange in soak.exchanges}):
        table.add_row(kind, *_traffic_row([e for e in soak.exchanges if e.kind == kind]))
    table.add_section()
    table.add_row("all", *_traffic_row(soak.exchanges))
    return table


def _traffic_row(exchanges: list[Exchange]) -> list[str]:
    verdicts = Counter(exchange.ending.verdict for exchange in exchanges)
    statuses = Counter(str(exchange.ending.status or "none") for exchange in exchanges)
    said = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    return [str(len(exchanges)), *(str(verdicts[verdict]) for verdict in _VERDICTS), said]


def _trend_table(found: list[Trend]) -> Table:
    table = Table("figure", "unit", "start", "end", "largest", "slope a minute")
    for trend in found:
        largest = max(point.value for point in trend.points)
        table.add_row(trend.name, trend.unit, *map(_number, (trend.start, trend.end, largest, trend.slope)))
    return table


def _count_table(soak: Soak) -> Table:
    table = Table("count", "value")
    table.add_row("kills of the worker", str(len(soak.kills)))
    restarts = [s.metrics.get("polydecode_worker_restarts_total", 0.0) for s in soak.samples if s.metrics]
    table.add_row("workers lost, by the server's count", _number(restarts[-1] if restarts else None))
    table.add_row("sent", str(len(soak.exchanges)))
    table.add_row("counted by the server", _number(soak.counted))
    table.add_row("unanswered (must be 0)", f"[bold]{len(soak.unanswered)}[/bold]")
    for exchange in soak.unanswered[:_EXAMPLES]:
        table.add_row(f"  at {exchange.seconds:.1f} s, {exchange.kind}", escape(exchange.ending.detail[:100]))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def soak_document(soak: Soak, found: list[Trend], target: Target) -> dict[str, Any]:
    """Everything that was seen; of the samples' metrics only the sums that the counts are about."""
    kinds = Counter((exchange.kind, exchange.ending.verdict) for exchange in soak.exchanges)
    return {
        **context(),
        "target": target_document(target),
        "plan": msgspec.to_builtins(soak.plan),
        "traffic": [{"kind": kind, "verdict": verdict, "count": count} for (kind, verdict), count in kinds.items()],
        "kills": soak.kills,
        "sent": len(soak.exchanges),
        "counted": soak.counted,
        "unanswered": msgspec.to_builtins(soak.unanswered),
        "trends": msgspec.to_builtins(found),
    }
