"""Where weights lie."""

from __future__ import annotations

import re
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from decoding.kernels.cpu.arena import CHUNK, HUGE_PAGE, LINE, Arena, lazy_zeros

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_bytes_are_kept_apart_each_at_the_start_of_a_cache_line() -> None:
    arena = Arena()
    given = [torch.randn(size) for size in (1, 33, CHUNK // 4 - 8, 70)]
    placed = [arena.place(each) for each in given]
    assert [each.data_ptr() % LINE for each in placed] == [0] * 4
    assert all(torch.equal(found.view(torch.float32), each) for found, each in zip(placed, given, strict=True))


def test_a_chunk_begun_in_inference_mode_is_written_on_outside_of_it() -> None:
    arena, given = Arena(), torch.ones(20)
    with torch.inference_mode():
        arena.place(given)
    assert torch.equal(arena.place(given).view(torch.float32), given)


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (CHUNK, 4)])
def test_zeros_take_memory_where_they_are_written_and_give_it_back(shape: tuple[int, ...]) -> None:
    process = psutil.Process()
    given = lazy_zeros(*shape)
    assert given.shape == shape
    before, half = process.memory_info().rss, given[: shape[0] // 2]
    half += 1
    taken = process.memory_info().rss - before
    assert abs(taken - half.nbytes) < 8 << 20
    assert not given[len(half) :].any()
    assert half.sum() == half.numel()
    del given, half
    assert process.memory_info().rss - before < 8 << 20


def in_huge_pages(given: torch.Tensor) -> int:
    """Bytes, of the mappings in which the tensor lies."""
    found, is_its = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(each, 16) for each in span.groups())
            is_its = start < given.data_ptr() + given.nbytes and given.data_ptr() < end
        elif is_its and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="this system gives nobody huge pages"
)
def test_a_large_cache_lies_in_huge_pages_and_a_small_one_takes_none() -> None:
    large, small = lazy_zeros(16 * HUGE_PAGE, dtype=torch.uint8), lazy_zeros(HUGE_PAGE // 2, dtype=torch.uint8)
    large += 1
    small += 1
    assert large.data_ptr() % HUGE_PAGE == 0
    assert in_huge_pages(large) >= 8 * HUGE_PAGE
    if "[madvise]" in ENABLED.read_text():
        assert in_huge_pages(small) == 0
