"""Layers of encoder-decoder models, whose attention is told to them: they project, normalise and feed forward.

Norms come before each part or after its residual sum. Linears that share an input carry the names by which
`replace_modules.py` merges them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""query, key, value [1, heads, T, dim] each -> [1, T, heads, dim]"""
Read = Callable[[torch.Tensor], torch.Tensor]
"""query [1, heads, T, dim] -> what it finds in the encoder memory, [1, T, heads, dim]"""


@dataclass(frozen=True, slots=True)
class Linears:
    """One attention's projections, as the model has them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear


class SelfAttention(nn.Module):
    def __init__(self, linears: Linears, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = linears.query, linears.key, linears.value
        self.out_proj = linears.out

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:  # [1, T, hidden] -> [1, T, hidden]
        query, key, value = (split(project(x), self.heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        out: torch.Tensor = self.out_proj(attend(query, key, value).flatten(2))
        return out


class CrossAttention(nn.Module):
    def __init__(self, linears: Linears, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = linears.query, linears.out

    def forward(self, x: torch.Tensor, read: Read) -> torch.Tensor:  # [1, T, hidden] -> [1, T, hidden]
        out: torch.Tensor = self.out(read(split(self.query(x), self.heads)).flatten(2))
        return out


class MemoryProjection(nn.Module):
    """The encoder's output -> what one decoder layer reads of it."""

    def __init__(self, linears: Linears, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.value = linears.key, linears.value

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [1, T, hidden] -> two [1, heads, T, dim]
        return split(self.key(x), self.heads), split(self.value(x), self.heads)


class FeedForward(nn.Module):
    def __init__(self, up: nn.Linear, activation: nn.Module, down: nn.Linear, gate: nn.Linear | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.activation = activation
        self._down_dtype = down.weight.dtype  # T5 keeps it in float32 beside halves

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [1, T, hidden] -> [1, T, hidden]
        if self.gate_proj is None:
            inner = self.activation(self.up_proj(x))
        else:
            inner = self.activation(self.gate_proj(x)) * self.up_proj(x)
        out: torch.Tensor = self.down_proj(inner.to(self._down_dtype)).to(x.dtype)
        return out


class Residual(nn.Module):
    """x + part(norm(x)), or norm(x + part(x))."""

    def __init__(self, part: nn.Module, norm: nn.Module, *, is_norm_first: bool) -> None:
        super().__init__()
        self.part, self.norm = part, norm
        self.is_norm_first = is_norm_first

    def forward(self, x: torch.Tensor, *told: Attend | Read) -> torch.Tensor:
        out: torch.Tensor
        out = x + self.part(self.norm(x), *told) if self.is_norm_first else self.norm(x + self.part(x, *told))
        return out


class EncoderLayer(nn.Module):
    def __init__(self, attention: Residual, feed_forward: Residual) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x: torch.Tensor, attend: Attend) -> torch.Tensor:  # [1, T, hidden] -> [1, T, hidden]
        out: torch.Tensor = self.feed_forward(self.attention(x, attend))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, attention: Residual, cross: Residual, feed_forward: Residual) -> None:
        super().__init__()
        self.attention, self.cross, self.feed_forward = attention, cross, feed_forward

    def forward(self, x: torch.Tensor, attend: Attend, read: Read) -> torch.Tensor:  # [1, T, hidden] -> [1, T, hidden]
        out: torch.Tensor = self.feed_forward(self.cross(self.attention(x, attend), read))
        return out


def split(x: torch.Tensor, heads: int) -> torch.Tensor:  # [1, T, heads * dim] -> [1, heads, T, dim]
    return x.view(1, x.shape[1], heads, -1).transpose(1, 2)
