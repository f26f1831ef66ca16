"""What grows in a soak: each figure's slope, fitted over what is left when beginnings are cut off.

A worker that was killed and replaced starts anew, so the fit takes every life's own level out and asks for one common
slope: sum (t - mean t)(y - mean y) / sum (t - mean t)^2, means over the life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from loadtest.soak.soaker import Soak
from loadtest.soak.watch import ProcessSample, Role

SKIPPED_SHARE = 0.2  # of the soak, and of each life: caches fill
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """life: the process's id where a figure belongs to a process, else 0."""

    seconds: float
    value: float
    life: int = 0


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure's points, and what they come to. start, end: medians of the first and last tenth of what is fitted."""

    name: str
    unit: str
    points: tuple[Point, ...]
    start: float | None
    end: float | None
    slope: float | None  # unit per minute


@dataclass(frozen=True, slots=True)
class _ProcessFigure:
    name: str
    unit: str
    read: Callable[[ProcessSample], float]


_PROCESS_FIGURES = (
    _ProcessFigure("memory", "MiB", lambda process: process.memory / _MIB),
    _ProcessFigure("descriptors", "", lambda process: process.num_descriptors),
    _ProcessFigure("threads", "", lambda process: process.num_threads),
)
_ROLES: tuple[Role, ...] = ("server", "worker")


def trends(soak: Soak) -> list[Trend]:
    """Every figure that has points."""
    found = [
        _trend(f"{role} {figure.name}", figure.unit, _of_processes(soak, role, figure.read))
        for figure in _PROCESS_FIGURES
        for role in _ROLES
    ]
    found.append(_trend("pages used", "", _of_metrics(soak, "polydecode_kv_pages_used")))
    found.append(_trend("metrics series", "", [Point(s.seconds, s.num_series) for s in soak.samples if s.num_series]))
    found += [_trend(f"/{path}", "ms", _of_probes(soak, path)) for path in ("health", "ready")]
    found.append(_trend("time to first byte", "ms", _first_bytes(soak)))
    return [trend for trend in found if trend.points]


def fit(points: Iterable[Point]) -> float | None:
    """The common slope per minute; None where no life has two points apart."""
    lives: dict[int, list[Point]] = {}
    for point in points:
        lives.setdefault(point.life, []).append(point)
    above = below = 0.0
    for life in lives.values():
        mean_seconds, mean_value = fmean(p.seconds for p in life), fmean(p.value for p in life)
        above += sum((p.seconds - mean_seconds) * (p.value - mean_value) for p in life)
        below += sum((p.seconds - mean_seconds) ** 2 for p in life)
    return 60 * above / below if below else None


def _trend(name: str, unit: str, points: Sequence[Point]) -> Trend:
    settled = _settled(points)
    tenth = max(len(settled) // 10, 1)
    start = median(p.value for p in settled[:tenth]) if settled else None
    end = median(p.value for p in settled[-tenth:]) if settled else None
    return Trend(name, unit, tuple(points), start, end, fit(settled))


def _settled(points: Sequence[Point]) -> list[Point]:
    """Without the first part of the soak and of every life."""
    if not points:
        return []
    first, last = points[0].seconds, points[-1].seconds
    begins: dict[int, float] = {}
    ends: dict[int, float] = {}
    for point in points:
        begins.setdefault(point.life, point.seconds)
        ends[point.life] = point.seconds
    earliest = first + SKIPPED_SHARE * (last - first)
    return [
        p
        for p in points
        if p.seconds >= max(earliest, begins[p.life] + SKIPPED_SHARE * (ends[p.life] - begins[p.life]))
    ]


def _of_processes(soak: Soak, role: Role, read: Callable[[ProcessSample], float]) -> list[Point]:
    return [
        Point(sample.seconds, read(process), process.pid)
        for sample in soak.samples
        for process in sample.processes
        if process.role == role
    ]


def _of_metrics(soak: Soak, name: str) -> list[Point]:
    return [Point(s.seconds, s.metrics[name]) for s in soak.samples if s.metrics is not None and name in s.metrics]


def _of_probes(soak: Soak, path: str) -> list[Point]:
    timed = [(s.seconds, s.health_seconds if path == "health" else s.ready_seconds) for s in soak.samples]
    return [Point(seconds, 1000 * taken) for seconds, taken in timed if taken is not None]


def _first_bytes(soak: Soak) -> list[Point]:
    """Of whole streamed answers: what a user waits."""
    streams = [e for e in soak.exchanges if e.kind == "stream" and e.ending.verdict == "answered"]
    points = [Point(e.seconds, 1000 * e.ending.first_byte) for e in streams if e.ending.first_byte is not None]
    return sorted(points, key=lambda point: point.seconds)
