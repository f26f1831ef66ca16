"""The seam between a packed batch and the attention backends.

`packing.py` builds a Batch on the host; `PagedAttention.plan` moves it to the device once per forward; the model
calls `PagedAttention.forward` once per layer. A backend promises that a query's result depends on its own row's keys
alone: not on its neighbours, not on how the row was cut into chunks, not on whether it came as prefill or decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from decoding.attention.pages import Pages
from decoding.device import to_device


@dataclass(frozen=True, slots=True)
class Memories:
    """The encoder memory of every row of a batch: how many positions, and in which pages."""

    lengths: np.ndarray  # int64 [R]
    page_tables: np.ndarray  # int64 [R, P]   padded with page 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One ragged forward on the host. T tokens of R rows, laid end to end; P is the longest page table.

    Row r owns tokens query_starts[r] : query_starts[r + 1]; its keys are positions 0 : kv_lengths[r], in the pages
    page_tables[r], this forward's own tokens included (they are written before any row attends). Rows of one batch may
    share pages. probe_rows: rows whose last query's last-layer attention scores are wanted. memories: where the rows
    are an encoder-decoder model's; their probed scores are those of the cross-attention. drawn: stands for token_ids
    where the host does not know them yet; these are then zeros.
    """

    token_ids: np.ndarray  # int64 [T]
    positions: np.ndarray  # int64 [T]
    slots: np.ndarray  # int64 [T]   page * page_size + offset: where the token's key and value go
    query_starts: np.ndarray  # int64 [R + 1]
    kv_lengths: np.ndarray  # int64 [R]
    page_tables: np.ndarray  # int64 [R, P]   padded with page 0
    embeds: dict[int, torch.Tensor] = field(default_factory=dict)  # token index -> [hidden], replaces its embedding
    probe_rows: tuple[int, ...] = ()
    memories: Memories | None = None
    drawn: torch.Tensor | None = None  # int64 [T], on the device

    @classmethod
    def of_rows(
        cls, token_ids: np.ndarray, starts: np.ndarray, counts: np.ndarray, page_tables: np.ndarray, page_size: int
    ) -> Batch:
        """Rows that feed so many tokens each, from these positions on: int64 [T], [R], [R] and [R, P]."""
        query_starts = np.concatenate(([0], np.cumsum(counts)))
        row_of = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - starts, counts)
        return cls(
            token_ids=token_ids,
            positions=positions,
            slots=page_tables[row_of, positions // page_size] * page_size + positions % page_size,
            query_starts=query_starts,
            kv_lengths=starts + counts,
            page_tables=page_tables,
        )

    @classmethod
    def of_one_row(cls, token_ids: np.ndarray, page_size: int, *, first_page: int = 1, start: int = 0) -> Batch:
        """One row, in pages that follow each other."""
        table = np.arange(first_page, first_page + -(-(start + len(token_ids)) // page_size))
        return cls.of_rows(token_ids, np.array([start]), np.array([len(token_ids)]), table[None], page_size)

    def ids_on(self, device: torch.device) -> torch.Tensor:  # int64 [T]
        return to_device(self.token_ids, device) if self.drawn is None else self.drawn

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        return len(self.kv_lengths)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What a layer's attention needs beyond q, k and v. None means the feature is off.

    bias: added to the scaled scores by head and by how far back the key lies, everything further like the last.
    """

    layer: int
    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [heads]
    bias: torch.Tensor | None = None  # [heads, distances]


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One token for each of R rows, on the device, in tensors that stay where they are while their contents change."""

    token_ids: torch.Tensor  # int64 [R]
    positions: torch.Tensor  # int64 [R]
    slots: torch.Tensor  # int64 [R]
    kv_lengths: torch.Tensor  # int64 [R]
    page_tables: torch.Tensor  # int64 [R, P]


class PagedAttention(ABC):
    """Owns the KV tensors and the arithmetic over them. Page ids come from `cache.py`; page 0 is never handed out.

    What a backend can do beyond attending is declared by its class, and is what `choice.py` goes by.
    """

    knows_biases: ClassVar[bool] = False
    """It adds LayerSpec.bias."""
    keeps_bfloat16: ClassVar[bool] = False
    """On a CPU: its pages can be bfloat16, where the others' are float32 whatever the model's."""
    is_capturable: ClassVar[bool] = False
    """Its forward can be recorded once and replayed over changed inputs."""

    def __init__(self, pages: Pages) -> None:
        self.page_size = pages.page_size
        self.pages = pages
        self.generation = 0  # counts calls of `allocate`: what holds addresses of an earlier one is void

    def allocate(self, num_pages: int) -> None:
        """Allocate keys and values for every layer: num_pages pages of page_size positions."""
        self.generation += 1
        self.pages.allocate(num_pages)

    def bytes_per_page(self) -> int:
        """Bytes one page takes over all layers, keys and values."""
        return self.pages.bytes_per_page()

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None:
        """Copy whole pages, all layers: (source page, destination page). Called before the forward that needs them."""
        self.pages.copy(pairs)

    @abstractmethod
    def plan(self, batch: Batch) -> Any:
        """Device-side metadata for one forward; opaque to everyone but the backend."""

    def decode_plan(self, inputs: DecodeInputs) -> Any:
        """As `plan`; whatever the inputs hold when `forward` runs, it reads then, on the device.

        Rows may be tokens of one sequence that follow each other, in the same pages: each sees those before it.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(
        self,
        spec: LayerSpec,
        query: torch.Tensor,  # [1, heads, T, head_dim]
        key: torch.Tensor,  # [1, kv_heads, T, head_dim]
        value: torch.Tensor,  # [1, kv_heads, T, v_head_dim]
        plan: Any,
    ) -> torch.Tensor:  # [1, T, heads, v_head_dim]
        """Write key and value into their slots, then attend causally, each row over its own pages."""

    def probed(self, plan: Any) -> dict[int, torch.Tensor]:
        """After the forward: of each probed row the last layer's scaled scores before the softmax, for its last query,
        float32 [heads, keys].
        """
        return dict(plan.scores)

    def _is_last(self, layer: int) -> bool:
        return layer == len(self.pages.shapes) - 1
