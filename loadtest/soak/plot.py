"""A soak as a picture: a panel for each group of figures over time, kills as lines. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from loadtest.soak.trend import Trend

# title -> figures, as they are named in soak_trend
PANELS = (
    ("memory (RssAnon + VmSwap)", ("server memory", "worker memory")),
    ("descriptors", ("server descriptors", "worker descriptors")),
    ("threads", ("server threads", "worker threads")),
    ("KV pages", ("pages used",)),
    ("/health and /ready", ("/health", "/ready")),
    ("time to first byte", ("time to first byte",)),
)


class NoMatplotlib(RuntimeError):
    """The picture cannot be drawn; the message says what to install."""


def require() -> None:
    """Raises NoMatplotlib. To be called before the soak, not after its twenty minutes."""
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError as error:
        raise NoMatplotlib("--plot needs matplotlib: pip install 'polydecode[loadtest]'") from error


def plot(found: list[Trend], kills: list[float], file: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 - only who wants a picture has to have it

    by_name = {trend.name: trend for trend in found}
    figure = Figure(figsize=(13, 9), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(3, 2).flat, PANELS, strict=True):
        shown = [by_name[name] for name in names if name in by_name]
        for trend in shown:
            minutes = [point.seconds / 60 for point in trend.points]
            label = trend.name if trend.slope is None else f"{trend.name}: {trend.slope:+.3g} {trend.unit}/min"
            axes.plot(minutes, [point.value for point in trend.points], ".", markersize=3, label=label)
        for kill in kills:
            axes.axvline(kill / 60, color="tab:red", alpha=0.25, linewidth=0.8)
        axes.set(title=title, xlabel="minutes", ylabel=next((trend.unit for trend in shown), ""))
        axes.set_ylim(bottom=0)
        if shown:
            axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)
