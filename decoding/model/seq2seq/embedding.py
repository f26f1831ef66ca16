"""Token ids and positions -> what the first layer receives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Embedding(nn.Module):
    """scale * token + position, perhaps normalised. `unplaced_id` gets no position (M2M100 gives its pad none)."""

    def __init__(
        self,
        tokens: nn.Embedding,
        scale: float,
        positions: torch.Tensor | None,  # [positions, hidden]
        norm: nn.Module | None,
        unplaced_id: int | None = None,
    ) -> None:
        super().__init__()
        self.tokens, self.norm = tokens, norm
        self._scale = scale
        self._positions = positions
        self._unplaced_id = unplaced_id

    @property
    def num_positions(self) -> int | None:
        """How many there are; None where positions are known to attention alone."""
        return None if self._positions is None else len(self._positions)

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, embeds: dict[int, torch.Tensor]
    ) -> torch.Tensor:  # int64 [T], int64 [T], token -> [hidden] -> [1, T, hidden]
        x = self.tokens(ids) * self._scale
        for token, vector in embeds.items():
            x[token] = vector.to(x)
        if self._positions is not None:
            placed = self._positions[positions]
            x = x + (placed if self._unplaced_id is None else placed * (ids != self._unplaced_id)[:, None])
        x = x[None]
        return x if self.norm is None else self.norm(x)  # type: ignore[no-any-return]


def read_embedding(stack: Any) -> Embedding:
    """Of an encoder or decoder as transformers has it."""
    tokens = stack.embed_tokens
    scale = float(getattr(tokens, "embed_scale", getattr(stack, "embed_scale", 1.0)) or 1.0)
    plain = nn.Embedding(len(tokens.weight), tokens.weight.shape[1], _weight=tokens.weight.detach())
    places = getattr(stack, "embed_positions", None)
    norm = getattr(stack, "layernorm_embedding", None)
    if places is None:
        return Embedding(plain, scale, None, norm)
    if hasattr(places, "weights"):  # M2M100's sinusoids
        pad = int(places.padding_idx)
        return Embedding(plain, scale, places.weights[pad + 1 :].to(tokens.weight), norm, pad)
    return Embedding(plain, scale, places.weight.detach()[getattr(places, "offset", 0) :], norm)
