"""Memory for weights in huge pages, where the system gives them, and for caches, which take it as they fill.

A decode step of few rows reads every weight once: with pages of 4 KiB it also waits for a page table entry per page.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap

import torch

HUGE_PAGE = 2 << 20
CHUNK = 32 << 20
LINE = 64


class Arena:
    """Hands out parts of large mappings, which live as long as any part of them is in use."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, data: torch.Tensor) -> torch.Tensor:
        """The bytes of `data`, copied to their place."""
        source = data.contiguous().flatten().view(torch.uint8)
        if self._used + len(source) > len(self._chunk):
            self._chunk, self._used = huge_pages(len(source)), 0
        target = self._chunk[self._used : self._used + len(source)]
        self._used += -(-len(source) // LINE) * LINE
        return target.copy_(source)


def huge_pages(size: int) -> torch.Tensor:
    """At least `size` bytes, beginning with a huge page."""
    return _map(-(-max(size, CHUNK) // HUGE_PAGE) * HUGE_PAGE, asks=True)


def lazy_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Takes memory from the system where it is first written; to write a whole cache of GBs takes seconds.

    A large one takes it in huge pages: what attention reads lies in pages of a few KiB all over it.
    """
    size = dtype.itemsize * math.prod(shape)
    return _map(size, asks=size >= 4 * HUGE_PAGE)[:size].view(dtype).view(shape)


@torch.inference_mode(False)  # whoever comes later may write into it outside of that mode
def _map(size: int, *, asks: bool) -> torch.Tensor:
    """So many bytes or more, zeros; asks: for huge pages, and begins with one."""
    mapping = mmap.mmap(-1, size + HUGE_PAGE if asks else max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if asks:
        with contextlib.suppress(OSError, AttributeError):  # a system without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    return whole[-whole.data_ptr() % HUGE_PAGE :] if asks else whole


@functools.cache
def shared_arena() -> Arena:
    """One for the whole process, so that small weights share a huge page."""
    return Arena()
