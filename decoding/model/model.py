"""A model that runs packed batches over paged attention: token ids to hidden states, hidden states to logits.

Which rows are in a batch, and where their pages are, it is told (`Batch`); how attention is computed is the backend's.
`causal.py` and `seq2seq/build.py` make it of a transformers model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from decoding.attention.interface import Batch, PagedAttention
from decoding.model.graphs import Bucket, DecodeGraphs, buckets_for
from decoding.model.info import ModelInfo
from decoding.model.linear import weight_bytes

if TYPE_CHECKING:
    from decoding.model.seq2seq.build import SourceEncoder


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a forward gives. probed: by row of the batch, the last layer's scaled scores for the row's last query."""

    last: torch.Tensor  # [T, hidden], after the final norm
    layers: dict[int, torch.Tensor]  # by transformers' index (0 is the embeddings), [T, hidden] each
    probed: dict[int, torch.Tensor]  # [heads, keys] each


class Head(Protocol):
    """From hidden states to logits."""

    @property
    def output_matrix(self) -> nn.Module: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...  # [N, hidden] -> [N, vocab]

    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab]
        """The output matrix alone."""


class Model:
    """One loaded model. Not for concurrent use: attention writes its pages as it goes.

    body: a batch, the layers to keep and a shift of the positions -> Hidden. graphs: its recorded forwards.
    is_compiled: nothing but small operations is left to torch, and its threads are better not called.
    """

    def __init__(
        self,
        info: ModelInfo,
        body: nn.Module,
        head: Head,
        attention: PagedAttention,
        *,
        encoder: SourceEncoder | None = None,
        graphs: DecodeGraphs | None = None,
        is_compiled: bool = False,
    ) -> None:
        self.info = info
        self.attention = attention
        self.encoder = encoder
        self.is_compiled = is_compiled
        self._body = body
        self._graphs = graphs
        self._head = head

    @torch.inference_mode()
    def record(self, most_rows: int, most_positions: int, leaves_bytes: int) -> None:
        """Record the forwards of small ticks now rather than at their first use, while more than that is free of the
        device's memory. The pages must be allocated.
        """
        if self._graphs is not None:
            buckets = self.recordings(most_rows, most_positions)
            self._graphs.record(buckets, self.attention.generation, leaves_bytes)

    def recordings(self, most_rows: int, most_positions: int) -> list[Bucket]:
        """What `record` would record."""
        if self._graphs is None:
            return []
        return buckets_for(most_rows, -(-most_positions // self.attention.page_size))

    @torch.inference_mode()
    def forward(self, batch: Batch, layers: tuple[int, ...] = (), *, shift: int = 0) -> Hidden:
        """Run the batch's tokens, writing their keys and values into its slots.

        shift: the model is told that the whole of every row lies so many positions further on.
        """
        hidden: Hidden = self._body(batch, layers, shift)
        return hidden

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The logits the model itself would give, soft caps, scalings and biases included."""
        return self._head.logits(hidden).float()

    @torch.inference_mode()
    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The output matrix alone: DoLa's premature logits."""
        return self._head.project(hidden).float()

    @property
    def body(self) -> nn.Module:
        return self._body

    @property
    def output_matrix(self) -> nn.Module:
        return self._head.output_matrix

    @property
    def weight_bytes(self) -> int:
        """Of the linears and the output matrix as they are held: what a decode step reads of the weights."""
        return sum(weight_bytes(module) for part in (self._body, self.output_matrix) for module in part.modules())
