"""Draws curves: throughput and time to first token over what grows. Needs matplotlib, of the extra `loadtest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.curve import Growth

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(growths: list[Growth], file: Path) -> None:
    """A PNG with a row of two panels for each curve."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only plots need it

    figure = Figure(figsize=(11, 3.4 * len(growths)), layout="constrained")
    axes = figure.subplots(len(growths), 2, squeeze=False)
    for growth, (left, right) in zip(growths, axes, strict=True):
        x = [point.x for point in growth.points]
        _panel(left, growth, x, [point.summary.output_tokens_per_second for point in growth.points], "output, tok/s")
        waits = [point.summary.time_to_first_token for point in growth.points]
        _panel(right, growth, x, [w.p50 if w else float("nan") for w in waits], "time to first token, p50, s")
    figure.savefig(file, dpi=110)


def _panel(axes: Axes, growth: Growth, x: list[int], y: list[float], label: str) -> None:
    axes.plot(x, y, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(value) for value in x])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(growth.curve.axis)
    axes.set_ylabel(label)
    axes.set_title(growth.curve.description, fontsize=9)
    axes.grid(visible=True, alpha=0.3)
