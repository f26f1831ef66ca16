"""How the compiled backend cuts a batch into pieces: queries that one thread attends with together.

Owns the cutting alone. A query's result does not depend on any choice made here, so it is free to seek speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import numpy as np

from decoding.attention.interface import Batch

ITEMS_A_THREAD = 2  # that there are at least, if rows with common pages must be kept apart for it


def cut(batch: Batch, most: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most so many queries, longest keys first: int64 [P, 2] and their parts [N, 4], as BATCH says.

    Rows that decode and begin with the same page are one piece, as long as there are so many pieces.
    """
    parts = _parts(batch, most)
    first_pages = np.where(parts[:, 2] == 1, batch.page_tables[parts[:, 0], 0], -1 - np.arange(len(parts)))
    if len(set(first_pages.tolist())) == len(parts):
        parts = parts[np.argsort(-parts[:, 3], kind="stable")]
        return np.stack([np.arange(len(parts)), np.ones(len(parts), np.int64)], 1), np.ascontiguousarray(parts)
    tables = [batch.page_tables[row].tobytes() for row in parts[:, 0].tolist()]
    groups = _groups(first_pages.tolist(), tables, most, items)
    groups.sort(key=lambda group: -int(parts[group, 3].sum()))
    counts = np.array([len(group) for group in groups])
    pieces = np.stack([np.cumsum(counts) - counts, counts], 1)
    return pieces, np.ascontiguousarray(parts[np.concatenate(groups)])


def _groups(first_pages: list[int], tables: list[bytes], most: int, items: int) -> list[list[int]]:
    """Numbers of the parts of each piece.

    Those that have most in common lie side by side: by the order of their tables, equal beginnings follow each other.
    """
    alike = [
        list(same) for _, same in groupby(sorted(range(len(tables)), key=tables.__getitem__), first_pages.__getitem__)
    ]
    shared = sum(len(group) for group in alike if len(group) > 1)
    size = min(most, max(1, shared // max(1, items - sum(len(group) == 1 for group in alike))))
    return [group[at : at + size] for group in alike for at in range(0, len(group), size)]


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
