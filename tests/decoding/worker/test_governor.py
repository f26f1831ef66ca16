"""How many threads beside others: fewer while ours wait for cores, more when cores idle, and no flapping."""

from __future__ import annotations

from itertools import pairwise

from decoding.worker.governor import LONGEST_SECONDS, Governor

ALONE, BESIDE_ONE, BESIDE_TWO = 0.1, 0.67, 1.0


def test_alone_all_threads_are_used() -> None:
    governor = Governor(2)
    for now in range(100):
        governor.waited(now, ALONE)
    assert governor.threads == 2
    assert not governor.looks_up


def test_beside_a_busy_process_one_thread_leaves_it_a_core() -> None:
    for cores in (BESIDE_ONE, BESIDE_TWO):
        governor = Governor(2)
        governor.waited(1.0, cores)
        assert governor.threads == 1


def test_of_many_threads_as_many_go_as_wait() -> None:
    governor = Governor(16)
    governor.waited(1.0, 0.9)
    assert governor.threads == 15
    governor.waited(2.0, 6.2)
    assert governor.threads == 9
    governor.waited(3.0, 40.0)
    assert governor.threads == 1


def test_threads_come_back_when_cores_idle_and_not_before() -> None:
    governor = Governor(2)
    governor.waited(1.0, BESIDE_ONE)
    governor.spared(5.0, 1.05)  # our own core, and a little of the other
    assert governor.threads == 1
    governor.spared(6.0, 1.8)
    assert governor.threads == 2
    governor.waited(7.0, ALONE)
    assert governor.threads == 2


def test_tries_in_vain_become_rare() -> None:
    governor, now, tries = Governor(2), 0.0, []
    while now < 200:
        now += 0.1
        if governor.threads == 2:
            tries.append(now)
            governor.waited(now, BESIDE_ONE)
        governor.spared(now, 2.0)  # cores that only seem to idle: a neighbour of low priority in a session of its own
    pauses = [round(later - sooner) for sooner, later in pairwise(tries)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > LONGEST_SECONDS / 2
    assert len(tries) < 15


def test_one_thread_stays_one() -> None:
    governor = Governor(1)
    governor.waited(1.0, 5.0)
    governor.spared(2.0, 5.0)
    assert governor.threads == 1
