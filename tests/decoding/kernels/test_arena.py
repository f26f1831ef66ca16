"""Where weights lie."""

from __future__ import annotations

import torch

from decoding.kernels.arena import CHUNK, LINE, Arena


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
