"""Digests of large amounts of bytes: of each chunk by itself, so that several threads share the work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 4 << 20
THREADS = min(4, os.cpu_count() or 1)

Span = tuple[int, int]  # where a chunk begins, and how long it is


def spans(size: int, start: int = 0) -> list[Span]:
    """Of `size` bytes from `start` on."""
    return [(start + at, min(CHUNK, size - at)) for at in range(0, size, CHUNK)]


def digests(chunks: Sequence[Span], read: Callable[[int, int], memoryview]) -> list[str]:
    """Of what `read` gives for each; it is called from several threads."""

    def digest(span: Span) -> str:
        return hashlib.sha256(read(*span)).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest, chunks))


def digest_of_files(files: Sequence[Path]) -> str:
    """Of their names and contents. Raises OSError."""
    whole = hashlib.sha256()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            parts = digests(spans(size), _reader(descriptor))
        finally:
            os.close(descriptor)
        whole.update(f"{file.name} {size} {' '.join(parts)}\n".encode())
    return whole.hexdigest()


def _reader(descriptor: int) -> Callable[[int, int], memoryview]:
    def read(start: int, length: int) -> memoryview:
        return memoryview(os.pread(descriptor, length, start))

    return read
