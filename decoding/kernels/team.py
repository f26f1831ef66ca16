"""Runs a kernel on several threads: those that torch's OpenMP runtime keeps anyway, so that no second pool spins."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

LIBRARY = "libgomp.so.1"


def _library() -> Any:
    """The runtime that torch has loaded already; another copy would bring threads of its own."""
    return ctypes.CDLL(LIBRARY, mode=getattr(ctypes, "RTLD_GLOBAL", 0) | _NOLOAD)


_NOLOAD = 4  # RTLD_NOLOAD of Linux


def has_threads() -> bool:
    try:
        return hasattr(_library(), "GOMP_parallel")
    except OSError:
        return False


class Team:
    """A fixed number of threads. A kernel runs on all of them at once and shares out its work by itself."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or torch.get_num_threads()
        library = _library()
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self._parallel.restype = None
        give_way = ctypes.CDLL(None).sched_yield
        self.give_way: int = ctypes.cast(give_way, ctypes.c_void_p).value or 0

    def run(self, kernel: int, record: int) -> None:
        """Call the compiled kernel at the address `kernel` with the address of its record, on every thread."""
        self._parallel(kernel, record, self.size, 0)
