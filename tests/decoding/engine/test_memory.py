"""What is left of the machine's and the container's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoding.worker.memory import GUESS, available_memory


def books(path: Path, available: int | None, limit: str | None, used: int = 0) -> tuple[Path, Path]:
    meminfo = path / "meminfo"
    if available is not None:
        meminfo.write_text(f"MemTotal: 99999 kB\nMemAvailable:    {available} kB\n")
    if limit is not None:
        (path / "memory.max").write_text(f"{limit}\n")
        (path / "memory.current").write_text(f"{used}\n")
    return meminfo, path


@pytest.mark.parametrize(
    ("available", "limit", "used", "expected"),
    [
        (1000, None, 0, 1000 << 10),
        (1000, "max", 0, 1000 << 10),
        (1000, "5000", 2000, 3000),
        (1000, "5000", 6000, 0),
        (None, None, 0, GUESS),
    ],
)
def test_the_smaller_of_machine_and_container_counts(
    tmp_path: Path, available: int | None, limit: str | None, used: int, expected: int
) -> None:
    assert available_memory(*books(tmp_path, available, limit, used)) == expected
