"""Threads that help: every unit is done exactly once, whoever does it, and helpers end with their team."""

from __future__ import annotations

import ctypes
import gc
import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

from decoding.kernels.cpu.team import Team
from tests.decoding.kernels.tiny_kernel import COUNTING, WAITING, counting, finishing, waiting


def test_each_unit_is_done_once_in_thousands_of_short_kernels() -> None:
    team, units = Team(4), 7
    done, counts, record = np.zeros(units, np.int64), np.zeros(8, np.int64), np.zeros(1, COUNTING)
    record[0] = (done.ctypes.data, units, counts.ctypes.data)
    for runs in range(1, 5001):
        counts.fill(0)
        team.run(counting.address, record.ctypes.data)
        assert counts[1] == units
        assert (done == runs).all()


def test_each_unit_is_done_once_however_many_threads_are_wanted() -> None:
    team, units = Team(4), 7
    done, counts, record = np.zeros(units, np.int64), np.zeros(8, np.int64), np.zeros(1, COUNTING)
    record[0] = (done.ctypes.data, units, counts.ctypes.data)
    for runs in range(1, 3001):
        team.limit(1 + runs * 7 % 9)
        counts.fill(0)
        team.run(counting.address, record.ctypes.data)
        assert counts[1] == units
        assert (done == runs).all()


def test_a_thread_that_waits_sleeps_until_the_last_unit_is_finished() -> None:
    counts, seconds = np.zeros(8, np.int64), 0.3
    record = np.zeros(1, WAITING)
    record[0] = (counts.ctypes.data, 2)
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    wait_for_all, finish_one = entry(waiting.address), entry(finishing.address)
    spent = []

    def wait() -> None:
        before = time.thread_time()
        wait_for_all(record.ctypes.data)
        spent.append(time.thread_time() - before)

    waiter = threading.Thread(target=wait)
    waiter.start()
    while counts[2] == 0:  # until it says that it sleeps
        time.sleep(0.001)
    for _ in range(2):
        time.sleep(seconds / 2)
        assert waiter.is_alive()
        finish_one(record.ctypes.data)
    waiter.join(20)
    assert not waiter.is_alive()
    assert spent[0] < seconds / 4  # of its core's time, whatever the others do


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
