"""`python -m loadtest.gpu_accept`: whether a GPU serves rightly, and how fast; all in one process and by one deadline.

Needs torch, triton, transformers, numpy and a checkout of this repository. Correctness first: kernels against their
oracles, every strategy in a crowd, alone and on the CPU, forwards launched ahead, recorded steps, too little memory.
Then speed: models of real shapes with random weights, as shares of what the machine can do at the most, where the time
goes, and the decode kernel's parameters. The table comes last. Exits 1 where something is not right.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from loadtest.engine.machine import about
from loadtest.gpu_accept.plan import steps
from loadtest.gpu_accept.report import Report
from loadtest.gpu_accept.runner import Means, cut_at_deadline, end_now, run
from loadtest.gpu_accept.scale import FULL, TINY
from loadtest.gpu_accept.session import Session


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    started = time.monotonic()
    given = _parse(argv)
    if not given.tiny and not torch.cuda.is_available():
        show("There is no GPU here. --tiny shows on a CPU that all of it runs.")
        return 2
    device = torch.device("cpu") if given.tiny else torch.device("cuda", 0)
    session = Session(device, torch.float32 if given.tiny else torch.bfloat16, TINY if given.tiny else FULL)
    report = Report({"date": datetime.now(UTC).isoformat(timespec="seconds")} | about(device), given.json)
    means = Means(started + given.seconds, session.free_bytes)
    watchdog = cut_at_deadline(report, means, lambda: end_now(report, show))
    chosen = [step for step in steps(session) if not given.only or any(part in step.name for part in given.only)]
    with torch.inference_mode(), warnings.catch_warnings(action="ignore"):  # of slow paths the figures tell
        run(chosen, report, means, show)
    watchdog.cancel()
    show(report.table())
    return 0 if report.is_right else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu_accept", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--seconds", type=float, default=470, help="when it ends, whatever is done by then")
    parser.add_argument("--json", type=Path, help="where all figures go, after each of them")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="steps whose names have one of these")
    parser.add_argument("--tiny", action="store_true", help="all of it at the size of a toy, on a CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.modules["numba"] = None  # type: ignore[assignment]  # kernels for the CPU would take a minute to compile
    sys.exit(main())
