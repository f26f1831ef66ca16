"""Busy processes beside a server: there while a load is played, gone after it, and the fair share of the rest."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from loadtest.neighbours import Line, Neighbours, busy, fair_share, is_nice_heeded, measure
from loadtest.scenario import Closed, Scenario, Shape
from tests.loadtest.test_process import state
from tests.loadtest.test_run import FakeClient
from tests.loadtest.until import until

LOAD = Scenario("load", "", Closed(2), (Shape(prompt_words=8, max_tokens=4),), requests=4, warmup=1)

SCRIPT = """
from loadtest.neighbours import Neighbours, busy
with busy(Neighbours(1)) as loops:
    print(loops[0].pid, flush=True)
    input()
"""


def test_loops_run_at_their_priority_and_end_with_the_context() -> None:
    with busy(Neighbours(2, nice=19)) as loops:
        assert [os.getpriority(os.PRIO_PROCESS, loop.pid) for loop in loops] == [19, 19]
    assert [loop.returncode for loop in loops] == [-signal.SIGKILL] * 2


def test_loops_end_when_a_load_is_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt), busy(Neighbours(1)) as loops:
        raise KeyboardInterrupt
    assert loops[0].returncode == -signal.SIGKILL


async def test_a_loop_outlives_nobody_who_is_killed() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    loop = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    await until(lambda: state(loop) in "XZ")


def test_a_fair_share_is_that_of_equals() -> None:
    assert fair_share(2, Neighbours(0), cores=2) == 1
    assert fair_share(2, Neighbours(1), cores=2) == pytest.approx(2 / 3)
    assert fair_share(2, Neighbours(2), cores=2) == 0.5
    assert fair_share(1, Neighbours(1), cores=2) == 1
    assert fair_share(2, Neighbours(1, nice=19), cores=2) == 1
    assert fair_share(2, Neighbours(1, nice=19), cores=2, is_nice_heeded=False) == pytest.approx(2 / 3)


def test_priorities_count_where_sessions_do_not(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("0\n")
    (tmp_path / "1").write_text("1\n")
    assert [is_nice_heeded(tmp_path / name) for name in ("0", "1", "none")] == [True, False, True]


async def test_each_load_is_compared_with_itself_alone() -> None:
    lines = await measure(FakeClient(), 2, 2, loads=[LOAD], beside=(Neighbours(0), Neighbours(1)))
    alone, beside = lines
    assert alone.fair == alone.tokens_per_second > 0
    assert beside.fair == pytest.approx(alone.tokens_per_second * 2 / 3)


def test_a_line_says_how_much_slower_than_fair_it_was() -> None:
    assert str(Line("load", Neighbours(1), 20.0, 30.0)) == "| load | 1 | 20.0 | 30.0 | 1.50 |"
    assert str(Line("load", Neighbours(1, nice=19), 0.0, 30.0)) == "| load | 1 at nice 19 | 0.0 | 30.0 | nothing came |"


async def test_a_line_is_shown_as_soon_as_it_is_known() -> None:
    shown: list[Line] = []
    lines = await measure(FakeClient(), 2, 2, loads=[LOAD], beside=(Neighbours(0), Neighbours(1)), show=shown.append)
    assert shown == lines
