"""`python -m loadtest run | compare | table | curve | soak | neighbours | list`: parses, measures, prints.

Exits 1 if a side completed no request, if a soak left one unanswered, or if nothing came beside busy
neighbours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rich.console import Console

from loadtest import neighbours
from loadtest.client import Client
from loadtest.contender import NotReady
from loadtest.options import (
    CompareOptions,
    CurveOptions,
    ListOptions,
    NeighboursOptions,
    RunOptions,
    SoakOptions,
    TableOptions,
    parse,
)
from loadtest.process import ServerDied
from loadtest.report.progress import Display
from loadtest.report.report import (
    comparison_document,
    comparison_table,
    growth_document,
    growth_table,
    run_document,
    run_table,
    scenario_table,
    write_json,
)
from loadtest.report.table import table_document, table_of
from loadtest.session import compare_all, grow_all, run_once, soak_once, tabulate_all
from loadtest.soak.plot import NoMatplotlib, plot, require
from loadtest.soak.report import soak_document, soak_tables
from loadtest.soak.trend import trends
from loadtest.table import Column

T = TypeVar("T")


def main(argv: list[str]) -> int:
    options = parse(argv)
    console = Console()
    try:
        match options:
            case ListOptions():
                console.print(scenario_table())
                return 0
            case RunOptions():
                return _run(options, console)
            case CompareOptions():
                return _compare(options, console)
            case TableOptions():
                return _table(options, console)
            case CurveOptions():
                return _curve(options, console)
            case SoakOptions():
                return _soak(options, console)
            case NeighboursOptions():
                return _neighbours(options)
    except (NoMatplotlib, NotReady, ServerDied) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def _run(options: RunOptions, console: Console) -> int:
    with Display() as display:
        run, target = _loop(lambda: run_once(options, display))
    console.print(run_table(run))
    if options.common.json is not None:
        write_json(run_document(run, target), options.common.json)
    return 0 if run.summary.completed else 1


def _compare(options: CompareOptions, console: Console) -> int:
    with Display() as display:
        comparisons = _loop(lambda: compare_all(options, display))
    for comparison in comparisons:
        console.print(comparison_table(comparison))
    if options.common.json is not None:
        write_json(comparison_document(comparisons, options.a.target, options.b.target), options.common.json)
    turns = [turn for comparison in comparisons for pair in comparison.pairs for turn in (pair.a, pair.b)]
    return 0 if all(turn.summary.completed for turn in turns) else 1


def _table(options: TableOptions, console: Console) -> int:
    columns: list[Column] = []
    try:
        with Display() as display:
            _loop(lambda: tabulate_all(options, display, columns.append))
    finally:  # many servers take an hour: what is whole is kept, whatever ends it
        _show(columns, options, console)
    turns = [turn for column in columns for taken in column.turns.values() for turn in taken]
    return 0 if all(turn.summary.completed for turn in turns) else 1


def _show(columns: list[Column], options: TableOptions, console: Console) -> None:
    for against in options.against if columns else ():
        console.print(table_of(columns, tuple(options.sides), against))
    if columns and options.common.json is not None:
        targets = {name: side.target for name, side in options.sides.items()}
        write_json(table_document(columns, targets), options.common.json)


def _curve(options: CurveOptions, console: Console) -> int:
    with Display() as display:
        growths, target = _loop(lambda: grow_all(options, display))
    for growth in growths:
        console.print(growth_table(growth))
    if options.json is not None:
        write_json(growth_document(growths, target, options.seed), options.json)
    if options.plot is not None:
        from loadtest.report.curve_plot import draw  # noqa: PLC0415 - needs matplotlib

        draw(growths, options.plot)
    return 0 if all(point.summary.completed for growth in growths for point in growth.points) else 1


def _soak(options: SoakOptions, console: Console) -> int:
    if options.plot is not None:
        require()
    soak, target = _loop(lambda: soak_once(options))
    found = trends(soak)
    console.print(soak_tables(soak, found))
    console.print(f"seed {options.plan.seed}")
    if options.json is not None:
        write_json(soak_document(soak, found, target), options.json)
    if options.plot is not None:
        plot(found, soak.kills, options.plot)
    return 1 if soak.unanswered else 0


def _neighbours(options: NeighboursOptions) -> int:
    print(neighbours.HEAD, flush=True)
    client, cores = Client(options.target, options.timeout), len(os.sched_getaffinity(0))
    lines = _loop(lambda: neighbours.measure(client, options.threads, cores, show=lambda line: print(line, flush=True)))
    return 0 if all(line.tokens_per_second for line in lines) else 1


def _loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs under uvloop where it is installed: it halves what the client takes from the server's cores."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_terminable(work))


async def _terminable(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # SIGTERM must unwind like Ctrl-C does, or servers we started would stay behind, some of them paused.
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
