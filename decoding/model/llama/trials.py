"""Trials that a fused layer must pass: it must give what the original layer gives on random hidden states.

Inputs are chosen so that a layer which treats some of them apart shows it: first positions, last ones, and directions
that make products large.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from decoding.attention.interface import Batch, PagedAttention
from decoding.model.attention_function import TracedAttention, carrying

TRIAL_TOKENS = 7
LOUD = 30.0  # the root mean square of loud inputs
QUIET = 1 / 16  # in sixteen bits: what a layer adds must not vanish in the rounding of what it is added to

Angles = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, [1, T, rotary] each


class Trial:
    """Hidden states and random angles for one layer over one page; positions: what the layer is told they are."""

    def __init__(
        self,
        index: int,
        traced: TracedAttention,
        attention: PagedAttention,
        x: torch.Tensor,  # [1, T, hidden]
        positions: np.ndarray,  # int64 [T]
    ) -> None:
        self.index, self._traced, self._attention = index, traced, attention
        self.x, self._positions = x, positions
        generator = torch.Generator().manual_seed(index)
        angles = torch.rand(1, x.shape[1], traced.shapes[index].head_dim, generator=generator)
        self.angles = (angles.cos().to(x), angles.sin().to(x))

    def original(self, layer: nn.Module) -> torch.Tensor | None:
        """What the layer gives; None where it cannot be called like the others."""
        try:
            return self.run(layer)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return None

    def run(self, layer: nn.Module) -> torch.Tensor | None:  # [1, T, hidden]
        """What the layer gives, called as a model calls it."""
        with carrying(self._traced.bind(self._attention, self.plan())) as keywords:
            found = layer(
                self.x,
                attention_mask=None,
                position_ids=torch.from_numpy(self._positions)[None].to(self.x.device),
                position_embeddings=self.angles,
                past_key_values=None,
                use_cache=False,
                **keywords,
            )
        return found if isinstance(found, torch.Tensor) else None

    def agrees(self, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
        """tolerance: relative to what the layer adds to its input."""
        difference, added = found.float() - expected.float(), expected.float() - self.x.float()
        return bool(difference.norm() < tolerance * added.norm())

    def plan(self) -> Any:
        return self._attention.plan(Batch.of_one_row(np.arange(self.x.shape[1]), self._attention.page_size))


def trials_of(layer: Any, index: int, traced: TracedAttention, attention: PagedAttention) -> list[Trial]:
    """In the layer's dtype, where it is."""
    generator = torch.Generator().manual_seed(index)
    like = next(weight for weight in layer.parameters() if weight.dim() == 2)
    quiet = 1.0 if like.dtype == torch.float32 else QUIET
    x = torch.randn(1, TRIAL_TOKENS, like.shape[1], generator=generator)
    loud = torch.cat([x[:, :2], _loud(layer, x.shape[2])], 1)  # a query needs keys to choose from
    x, loud = (quiet * x).to(like), (quiet * loud).to(like)
    first = np.arange(TRIAL_TOKENS)
    last = first + max(0, traced.num_positions - TRIAL_TOKENS)
    far = np.linspace(0, traced.num_positions - 1, loud.shape[1]).astype(np.int64)
    common = (index, traced, attention)
    return [Trial(*common, x, first), Trial(*common, x, last), Trial(*common, loud, far)]


def _loud(layer: nn.Module, hidden: int) -> torch.Tensor:  # [1, T, hidden]
    """Of each matrix that takes hidden states its longest row: nothing else makes one of its results as large."""
    matrices = [weight for weight in layer.parameters() if weight.dim() == 2 and weight.shape[1] == hidden]
    rows = torch.stack([matrix[matrix.norm(dim=1).argmax()].float().cpu() for matrix in matrices[:TRIAL_TOKENS]])
    return LOUD * rows[None] / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
