"""How the CPU backend cuts a batch into tiles: groups of queries of like size that share one batched product.

Owns the grouping and the index tensors that follow from it. A query's result does not depend on any choice made here:
padding queries, padding keys and neighbours change nothing (see `cpu.py`), so the grouping is free to seek speed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from decoding.attention.interface import Batch
from decoding.attention.pages import LayerShape

# float32 products of 1-3 or 5-7 rows take another kernel than all others: query rows go in fours.
ROW_MULTIPLE = 4
MAX_QUERIES = 128
# Bounds the scores of one tile (16 MiB) and the keys gathered for it (2 MiB): more would fall out of the caches. On one
# thread 64 rows of 192 keys took 5.1-5.8 ms a layer with this bound, 6.2-7.9 with four times it, 7.3-8.1 with 1/4.
MAX_SCORES = 1 << 22
MAX_GATHERED = 1 << 19
# Padding a row by as many keys costs less than another group of small operations.
CHEAP_PADDING = 256


def block_edges(keys: int) -> list[int]:
    """0 and the ends of the key blocks that cover `keys` positions.

    Values are summed up block by block, so an edge must be a function of the position alone; finer blocks near the
    start keep short rows from being padded much, coarser ones further on keep long rows from many small products.
    """
    edges = [0]
    while edges[-1] < keys:
        edges.append(edges[-1] + (64 if edges[-1] < 256 else 128 if edges[-1] < 1024 else 256))
    return edges


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive queries of one row."""

    row: int
    first_token: int
    queries: int
    first_position: int

    @property
    def keys(self) -> int:
        """How many keys the last query sees."""
        return self.first_position + self.queries

    @property
    def padded_keys(self) -> int:
        return block_edges(self.keys)[-1]


def cut(batch: Batch, heads: int) -> list[Piece]:
    """Every row as pieces of a bounded number of queries."""
    pieces = []
    starts = batch.query_starts.tolist()
    for row, (keys, (start, end)) in enumerate(zip(batch.kv_lengths.tolist(), pairwise(starts), strict=True)):
        most = max(16, min(MAX_QUERIES, MAX_SCORES // (heads * keys)))
        for token in range(start, end, most):
            queries = min(most, end - token)
            pieces.append(Piece(row, token, queries, keys - (end - token)))
    return pieces


def group(pieces: Iterable[Piece], shape: LayerShape) -> list[list[Piece]]:
    """Pieces that share one product: like numbers of queries, key counts that waste little padding."""
    groups: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.queries, piece.padded_keys), reverse=True):
        if groups and _fits(groups[-1], piece, shape):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [sorted(members, key=lambda piece: piece.first_token) for members in groups]


def _fits(members: list[Piece], piece: Piece, shape: LayerShape) -> bool:
    largest = members[0]
    rows = len(members) + 1
    padding = largest.padded_keys - piece.padded_keys
    bearable = max(CHEAP_PADDING, piece.padded_keys) // max(1, piece.queries // 4)
    is_alike = largest.queries <= 2 * piece.queries and padding <= bearable
    widest = max(largest.padded_keys, piece.padded_keys)
    return (
        is_alike
        and rows * widest * shape.kv_heads * shape.head_dim <= MAX_GATHERED
        and rows * widest * shape.heads * largest.queries <= MAX_SCORES
    )


@dataclass(slots=True)
class Tile:
    """One group of pieces on the device: R pieces, Q queries each (padded), L keys each (padded)."""

    rows: tuple[int, ...]
    token_ids: torch.Tensor  # int64 [R * Q]    positions in the batch; padding repeats the piece's last
    is_padded: bool
    valid: torch.Tensor  # int64 [valid]   which of the R * Q are no padding
    page_tables: torch.Tensor  # int64 [R, P]
    positions: torch.Tensor  # int64 [R, Q]
    last_keys: tuple[int, ...]
    last_queries: tuple[int, ...]
    edges: tuple[int, ...]
    _gathers: dict[int, torch.Tensor] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    _biased: tuple[torch.Tensor, torch.Tensor] | None = None  # a bias, and the mask made with it

    @property
    def num_rows(self) -> int:
        return self.positions.shape[0]

    @property
    def num_queries(self) -> int:
        return self.positions.shape[1]

    @property
    def num_keys(self) -> int:
        return self.edges[-1]

    def gather_ids(self, kv_heads: int) -> torch.Tensor:
        """Rows to gather from pages seen as [num_pages * kv_heads, page_size * dim], in the order [R, kv_heads, P]."""
        if kv_heads not in self._gathers:
            heads = torch.arange(kv_heads)
            self._gathers[kv_heads] = (self.page_tables[:, None, :] * kv_heads + heads[:, None]).reshape(-1)
        return self._gathers[kv_heads]

    def mask(self, group_size: int, sliding_window: int | None) -> torch.Tensor:
        """0 where a query sees a key, else -inf: float32 [R, 1, M, L], M = Q * group_size padded to ROW_MULTIPLE."""
        key = (group_size, sliding_window)
        if key not in self._masks:
            keys = torch.arange(self.num_keys)
            positions = self.positions.repeat_interleave(group_size, 1)
            missing = -positions.shape[1] % ROW_MULTIPLE
            positions = torch.cat([positions, positions[:, -1:].expand(-1, missing)], 1)[..., None]
            hidden = keys > positions
            if sliding_window is not None:
                hidden |= keys <= positions - sliding_window
            self._masks[key] = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]
        return self._masks[key]

    def biased_mask(self, mask: torch.Tensor, bias: torch.Tensor, shape: LayerShape) -> torch.Tensor:
        """mask [R, 1, M, L] plus bias [heads, distances]: float32 [R, H, M, L]. Layers that share a bias share it."""
        if self._biased is None or self._biased[0] is not bias:
            distances = (self.positions[..., None] - torch.arange(self.num_keys)).clamp(0, bias.shape[1] - 1)
            by_head = bias.view(shape.kv_heads, shape.group, -1)[:, :, distances]  # [H, group, R, Q, L]
            packed = by_head.permute(2, 0, 3, 1, 4).flatten(2, 3)  # [R, H, Q * group, L]
            missing = mask.shape[2] - packed.shape[2]
            self._biased = bias, torch.nn.functional.pad(packed, (0, 0, 0, missing)) + mask
        return self._biased[1]


def build_tile(batch: Batch, pieces: list[Piece], page_size: int) -> Tile:
    queries = np.array([piece.queries for piece in pieces])
    steps = np.minimum(np.arange(queries.max()), queries[:, None] - 1)  # [R, Q]
    tokens = np.array([piece.first_token for piece in pieces])[:, None] + steps
    edges = block_edges(max(piece.keys for piece in pieces))
    tables = np.zeros((len(pieces), edges[-1] // page_size), dtype=np.int64)
    for table, piece in zip(tables, pieces, strict=True):
        pages = -(-piece.keys // page_size)
        table[:pages] = batch.page_tables[piece.row, :pages]
    return Tile(
        rows=tuple(piece.row for piece in pieces),
        token_ids=torch.from_numpy(tokens.reshape(-1)),
        is_padded=bool(queries.min() < queries.max()),
        valid=torch.from_numpy(np.flatnonzero(np.arange(queries.max()) < queries[:, None])),
        page_tables=torch.from_numpy(tables),
        positions=torch.from_numpy(np.array([piece.first_position for piece in pieces])[:, None] + steps),
        last_keys=tuple(piece.keys for piece in pieces),
        last_queries=tuple(int(count) - 1 for count in queries),
        edges=tuple(edges),
    )
