"""Lays rows of tokens into scattered pages: the world the attention and model tests share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from decoding.attention.interface import Batch


@dataclass(slots=True)
class Row:
    """One sequence: its tokens so far and its page table."""

    tokens: list[int]
    pages: list[int] = field(default_factory=list)
    fed: int = 0


class PageBook:
    """Hands out pages in a shuffled order, so that no row's pages are neighbours, and packs feeds into batches."""

    def __init__(self, num_pages: int, page_size: int, seed: int = 0) -> None:
        self._free = (np.random.default_rng(seed).permutation(num_pages - 1) + 1).tolist()
        self._page_size = page_size

    def batch(
        self,
        feeds: list[tuple[Row, int]],
        embeds: dict[int, torch.Tensor] | None = None,
        probe_rows: tuple[int, ...] = (),
    ) -> Batch:
        """Feed each row its next so many tokens."""
        for row, count in feeds:
            missing = -(-(row.fed + count) // self._page_size) - len(row.pages)
            row.pages += [self._free.pop() for _ in range(missing)]
        positions = [np.arange(row.fed, row.fed + count) for row, count in feeds]
        slots = [np.take(row.pages, p // self._page_size) * self._page_size + p % self._page_size
                 for (row, _), p in zip(feeds, positions, strict=True)]  # fmt: skip
        tables = np.zeros((len(feeds), max(len(row.pages) for row, _ in feeds)), dtype=np.int64)
        for table, (row, _) in zip(tables, feeds, strict=True):
            table[: len(row.pages)] = row.pages
        tokens = [row.tokens[row.fed : row.fed + count] for row, count in feeds]
        for row, count in feeds:
            row.fed += count
        return Batch(
            token_ids=np.concatenate(tokens).astype(np.int64),
            positions=np.concatenate(positions),
            slots=np.concatenate(slots),
            query_starts=np.cumsum([0, *(count for _, count in feeds)]),
            kv_lengths=np.array([row.fed for row, _ in feeds]),
            page_tables=tables,
            embeds=embeds or {},
            probe_rows=probe_rows,
        )
