"""The command line, read into frozen values: everything after this module is typed and checked."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loadtest.curve import CURVES, Curve
from loadtest.curve import find as find_curve
from loadtest.scenario import SCENARIOS, STANDARD, Closed, Scenario
from loadtest.scenario import find as find_scenario
from loadtest.side import Side, read_sides
from loadtest.soak.soaker import Plan
from loadtest.target import DIALECTS, PATHS, Target, base_url
from loadtest.target import dialect as find_dialect

Between = Literal["pause", "restart"]

_DESCRIPTION = "Measures OpenAI-compatible servers. Tokens are counted from the servers' usage, never from chunks."


@dataclass(frozen=True, slots=True)
class Common:
    scenarios: tuple[Scenario, ...]
    seed: int
    timeout: float
    json: Path | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    common: Common
    target: Target


@dataclass(frozen=True, slots=True)
class CompareOptions:
    common: Common
    a: Side
    b: Side
    pairs: int
    between: Between
    ready_timeout: float


@dataclass(frozen=True, slots=True)
class TableOptions:
    """against: the sides that the others' ratios are taken by, a table each."""

    common: Common
    sides: Mapping[str, Side]
    against: tuple[str, ...]
    rounds: int
    between: Between
    ready_timeout: float


@dataclass(frozen=True, slots=True)
class CurveOptions:
    """most: larger values of a curve are left out."""

    curves: tuple[Curve, ...]
    target: Target
    most: int
    seed: int
    timeout: float
    json: Path | None
    plot: Path | None


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """pid: of a server that runs already, whose processes can be seen."""

    plan: Plan
    side: Side
    pid: int | None
    ready_timeout: float
    json: Path | None
    plot: Path | None


@dataclass(frozen=True, slots=True)
class NeighboursOptions:
    """threads: of the server. timeout: seconds for each request."""

    target: Target
    threads: int
    timeout: float


@dataclass(frozen=True, slots=True)
class ListOptions:
    """`list` takes nothing."""


Options = RunOptions | CompareOptions | TableOptions | CurveOptions | SoakOptions | NeighboursOptions | ListOptions


def parse(argv: list[str]) -> Options:
    """Exits with usage on anything wrong, as argparse does."""
    parser = _parser()
    values = parser.parse_args(argv)
    try:
        match values.action:
            case "run":
                return RunOptions(_common(values, (values.scenario,)), _target(values, ""))
            case "compare":
                return _compare(values)
            case "table":
                return _table(values)
            case "curve":
                return _curve(values)
            case "soak":
                return _soak(values)
            case "neighbours":
                return NeighboursOptions(_target(values, ""), values.threads, values.timeout)
            case _:
                return ListOptions()
    except (LookupError, ValueError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("list", help="list the scenarios")

    run = commands.add_parser("run", help="measure one server")
    run.add_argument("scenario", metavar="SCENARIO", help=", ".join(s.name for s in SCENARIOS))
    _add_common(run)
    _add_target(run, "")

    compare = commands.add_parser("compare", help="measure two servers in turn, A B A B, and print the ratios")
    compare.add_argument("scenarios", metavar="SCENARIO", nargs="+", help="one or more, one table each")
    _add_common(compare)
    compare.add_argument("--pairs", type=_positive, default=5, help="A B pairs a scenario (default 5)")
    _add_waiting(compare)
    for side in ("a", "b"):
        _add_target(compare, f"{side}-")
        compare.add_argument(f"--{side}-command", metavar="CMD", help="starts this server (no shell: use sh -c '…')")
        compare.add_argument(f"--{side}-ready", metavar="PATH", help="answers 200 when ready (default: by dialect)")
    _add_table(commands.add_parser("table", help="measure any number of servers in turn, and print one table"))
    _add_curve(commands.add_parser("curve", help="measure how cost grows, and draw it"))
    _add_soak(commands.add_parser("soak", help="mixed, bad and overflowing traffic for minutes: does anything grow?"))
    _add_neighbours(commands.add_parser("neighbours", help="measure a server beside busy processes on its machine"))
    return parser


def _add_table(table: argparse.ArgumentParser) -> None:
    table.add_argument("scenarios", metavar="SCENARIO", nargs="*", help=f"default: {', '.join(STANDARD)}")
    _add_common(table)
    table.add_argument("--contenders", type=Path, required=True, metavar="FILE", help="TOML: the servers by name")
    table.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the file's servers, in this order")
    table.add_argument(
        "--against", nargs="+", default=[], metavar="NAME", help="whose rates the ratios are by (default: the first)"
    )
    table.add_argument("--rounds", type=_positive, default=5, help="turns of each server a scenario (default 5)")
    _add_waiting(table)


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--between",
        choices=("pause", "restart"),
        default="pause",
        help="what becomes of a server started by a command of ours when it is not its turn: "
        "pause: SIGSTOP for its process group, it stays warm (default); restart: ended, and started for each turn",
    )
    parser.add_argument("--ready-timeout", type=float, default=300.0, help="seconds to become ready (default 300)")


def _add_curve(curve: argparse.ArgumentParser) -> None:
    curve.add_argument("curves", metavar="CURVE", nargs="+", help=", ".join(c.name for c in CURVES))
    curve.add_argument("--most", type=_positive, default=1 << 30, metavar="X", help="leave out larger values")
    curve.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG (needs matplotlib)")
    _add_measuring(curve)
    _add_target(curve, "")


def _add_soak(soak: argparse.ArgumentParser) -> None:
    _add_target(soak, "")
    soak.add_argument("--command", metavar="CMD", help="starts the server (no shell: use sh -c '…')")
    soak.add_argument("--ready", metavar="PATH", help="answers 200 when ready (default: by dialect)")
    soak.add_argument("--ready-timeout", type=float, default=300.0, help="seconds to become ready (default 300)")
    soak.add_argument("--pid", type=_positive, help="of a server without --command, to look at and to kill workers of")
    soak.add_argument("--minutes", type=_seconds, default=20.0, help="how long (default 20)")
    soak.add_argument("--users", type=_positive, default=12, help="who send one request after the other (default 12)")
    soak.add_argument("--kill-every", type=_seconds, default=0.0, help="seconds between kills of the worker (0: none)")
    soak.add_argument("--burst-every", type=_seconds, default=20.0, help="seconds between bursts (default 20; 0: none)")
    soak.add_argument("--burst", type=_positive, default=100, help="requests of a burst (default 100)")
    soak.add_argument("--sample-every", type=_seconds, default=2.0, help="seconds between samples (default 2)")
    soak.add_argument("--timeout", type=float, default=120.0, help="seconds after which a request counts as unanswered")
    soak.add_argument("--seed", type=_natural, help="of the traffic (default: a new one, printed)")
    soak.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    soak.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (PNG; needs matplotlib)")


def _add_neighbours(neighbours: argparse.ArgumentParser) -> None:
    _add_target(neighbours, "")
    cores = len(os.sched_getaffinity(0))
    neighbours.add_argument(
        "--threads", type=_positive, default=cores, help=f"as the server was told (default {cores})"
    )
    neighbours.add_argument("--timeout", type=float, default=120.0, help="seconds for one request (default 120)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=_positive, help="measured requests (default: the scenario's)")
    parser.add_argument("--warmup", type=_natural, help="unmeasured requests before (default: the scenario's)")
    _add_measuring(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=_natural, help="of prompts and arrivals (default: a new one, printed, so that no cache knows it)"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one request (default 600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")


def _add_target(parser: argparse.ArgumentParser, prefix: str) -> None:
    parser.add_argument(f"--{prefix}url", required=True, metavar="URL", help="e.g. http://127.0.0.1:8000")
    parser.add_argument(f"--{prefix}model", metavar="NAME", help="default: the first of /v1/models, if it has any")
    parser.add_argument(f"--{prefix}api-key", metavar="KEY")
    parser.add_argument(f"--{prefix}endpoint", choices=tuple(PATHS), default="completions")
    parser.add_argument(
        f"--{prefix}dialect",
        choices=tuple(d.name for d in DIALECTS),
        default="polydecode",
        help="how this server is told to ignore EOS (default polydecode; openai: no extra fields)",
    )
    parser.add_argument(
        f"--{prefix}extra", type=_json_object, default={}, metavar="JSON", help="request fields; null takes one out"
    )


def _common(values: argparse.Namespace, names: tuple[str, ...]) -> Common:
    scenarios = tuple(_scaled(find_scenario(name), values.requests, values.warmup) for name in names)
    return Common(scenarios, _seed(values), values.timeout, values.json)


def _seed(values: argparse.Namespace) -> int:
    return secrets.randbits(32) if values.seed is None else int(values.seed)


def _curve(values: argparse.Namespace) -> CurveOptions:
    return CurveOptions(
        curves=tuple(find_curve(name) for name in values.curves),
        target=_target(values, ""),
        most=values.most,
        seed=_seed(values),
        timeout=values.timeout,
        json=values.json,
        plot=values.plot,
    )


def _scaled(scenario: Scenario, requests: int | None, warmup: int | None) -> Scenario:
    scaled = replace(
        scenario,
        requests=scenario.requests if requests is None else requests,
        warmup=scenario.warmup if warmup is None else warmup,
    )
    if isinstance(scaled.load, Closed) and scaled.requests < scaled.load.streams:
        raise ValueError(f"{scaled.name} needs at least {scaled.load.streams} requests to fill its streams")
    return scaled


def _compare(values: argparse.Namespace) -> CompareOptions:
    return CompareOptions(
        common=_common(values, tuple(values.scenarios)),
        a=_side(values, "a_"),
        b=_side(values, "b_"),
        pairs=values.pairs,
        between=values.between,
        ready_timeout=values.ready_timeout,
    )


def _table(values: argparse.Namespace) -> TableOptions:
    sides = read_sides(values.contenders, values.only)
    against = tuple(values.against) or tuple(sides)[:1]
    if missing := [name for name in against if name not in sides]:
        raise LookupError(f"--against {', '.join(missing)}: no such server is measured")
    return TableOptions(
        common=_common(values, tuple(values.scenarios) or STANDARD),
        sides=sides,
        against=against,
        rounds=values.rounds,
        between=values.between,
        ready_timeout=values.ready_timeout,
    )


def _soak(values: argparse.Namespace) -> SoakOptions:
    if values.kill_every and values.command is None and values.pid is None:
        raise ValueError("--kill-every needs --command or --pid: whose worker?")
    plan = Plan(
        seconds=60 * values.minutes,
        users=values.users,
        kill_every=values.kill_every,
        burst_every=values.burst_every,
        burst=values.burst,
        sample_every=values.sample_every,
        timeout=values.timeout,
        seed=secrets.randbits(32) if values.seed is None else values.seed,
    )
    return SoakOptions(plan, _side(values, ""), values.pid, values.ready_timeout, values.json, values.plot)


def _side(values: argparse.Namespace, prefix: str) -> Side:
    target = _target(values, prefix)
    read = vars(values)
    return Side(target, read[f"{prefix}ready"] or target.dialect.ready_path, read[f"{prefix}command"])


def _target(values: argparse.Namespace, prefix: str) -> Target:
    read = vars(values)
    return Target(
        url=base_url(read[f"{prefix}url"]),
        dialect=find_dialect(read[f"{prefix}dialect"]),
        endpoint=read[f"{prefix}endpoint"],
        model=read[f"{prefix}model"],
        api_key=read[f"{prefix}api_key"],
        extra=read[f"{prefix}extra"],
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number, not negative")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value
