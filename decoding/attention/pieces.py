"""How the compiled backend cuts a batch into pieces: queries that one thread attends with together.

Owns the cutting alone. A query's result does not depend on any choice made here, so it is free to seek speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from decoding.attention.interface import Batch


def cut(batch: Batch, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most so many queries, longest keys first: int64 [P, 2] and their parts [N, 4], as BATCH says."""
    parts = _parts(batch, most)
    parts = np.ascontiguousarray(parts[np.argsort(-parts[:, 3], kind="stable")])
    return np.stack([np.arange(len(parts)), np.ones(len(parts), np.int64)], 1), parts


def _parts(batch: Batch, most: int) -> np.ndarray:
    counts = np.diff(batch.query_starts)
    if most == 1 or counts.max() == 1:
        rows = np.repeat(np.arange(len(counts)), counts)
        return np.stack([rows, np.arange(batch.num_tokens), np.ones_like(rows), batch.positions], 1)
    return np.array(list(_spans(batch, most)), np.int64)


def _spans(batch: Batch, most: int) -> Iterator[tuple[int, int, int, int]]:
    for row, (start, end) in enumerate(pairwise(batch.query_starts.tolist())):
        for token in range(start, end, most):
            yield row, token, min(most, end - token), int(batch.positions[token])
