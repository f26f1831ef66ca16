"""Threads follow what the machine gives, by the figures of the system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from decoding.worker.threads import System, Threads, default_threads


@dataclass
class Machine:
    """A clock, and what the system would count: beside a neighbour, two threads wait for two thirds of a core."""

    now: float = 0.0
    waited_seconds: float = 0.0
    spared_seconds: float = 0.0
    has_neighbour: bool = False

    def waited(self) -> float:
        return self.waited_seconds

    def spared(self) -> float:
        return self.spared_seconds

    def run(self, threads: Threads, used: list[int], seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.now += 0.02
            if self.has_neighbour and used[-1] == 2:
                self.waited_seconds += 0.02 * 0.67
            self.spared_seconds += 0.02 * (1 if self.has_neighbour else 2)
            threads.ticked(0.02)


def test_the_number_goes_down_beside_a_neighbour_and_up_without() -> None:
    machine, used = Machine(), [2]
    threads = Threads(2, used.append, machine, lambda: machine.now)  # type: ignore[arg-type]
    machine.run(threads, used, 5)
    assert used == [2]
    machine.has_neighbour = True
    machine.run(threads, used, 10)
    assert used == [2, 1]
    machine.has_neighbour = False
    machine.run(threads, used, 3)
    assert used == [2, 1, 2]


def test_a_system_without_figures_keeps_the_number_asked_for(tmp_path: Path) -> None:
    used: list[int] = []
    threads = Threads(2, used.append, System(tmp_path))
    for _ in range(50):
        threads.ticked(1.0)
    assert used == []


def test_what_this_system_counts_can_be_read() -> None:
    system = System()
    assert system.waited() >= 0
    before = system.spared()
    sum(range(10**6))
    assert system.spared() > before


@pytest.mark.parametrize(
    ("name", "text", "threads"),
    [("cpu.max", "100000 100000", 1), ("cpu.max", "max 100000", None), ("cpu.max", "", None)],
)
def test_a_quota_bounds_the_default(tmp_path: Path, name: str, text: str, threads: int | None) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / name).write_text(text)
    assert default_threads(tmp_path) == min(torch.get_num_threads(), threads or 1000)


def test_the_older_form_of_a_quota_bounds_it_too(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/cpu"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert default_threads(tmp_path) == 1
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert default_threads(tmp_path) == torch.get_num_threads()
