"""Threads that help: every unit is done exactly once, whoever does it, and helpers end with their team."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from decoding.kernels.team import Team
from tests.decoding.kernels.tiny_kernel import COUNTING, counting


def test_each_unit_is_done_once_in_thousands_of_short_kernels() -> None:
    team, units = Team(4), 7
    done, counts, record = np.zeros(units, np.int64), np.zeros(8, np.int64), np.zeros(1, COUNTING)
    record[0] = (done.ctypes.data, units, counts.ctypes.data)
    for runs in range(1, 5001):
        counts.fill(0)
        team.run(counting.address, record.ctypes.data)
        assert counts[1] == units
        assert (done == runs).all()


def test_helpers_end_when_their_team_is_gone() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    del team
    gc.collect()
    deadline = time.monotonic() + 20
    for helper in helpers:
        helper.join(max(0.0, deadline - time.monotonic()))
    assert not any(helper.is_alive() for helper in helpers)
