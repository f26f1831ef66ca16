"""Where weights lie."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from decoding.kernels.cpu.arena import CHUNK, LINE, Arena, lazy_zeros


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
