"""Memory that the C allocator keeps after large work, given back to the system.

glibc keeps what threads have freed in an arena for each; a text of a megabyte leaves a hundred behind.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def malloc_trim() -> None:
    """Some milliseconds, without the GIL. Does nothing where the C library cannot."""
    _c_function()(0)


@functools.cache
def _c_function() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # musl, macOS, Windows
        return lambda _: None
