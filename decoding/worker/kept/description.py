"""A model all of whose layers are fused, as numbers and tensors: what a later start makes it of again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from decoding.attention.interface import LayerSpec
from decoding.attention.pages import LayerShape
from decoding.kernels.cpu.panels import Panels
from decoding.model.info import ModelInfo
from decoding.model.layer_weights import Weights
from decoding.model.llama.parts import Norm


@dataclass(frozen=True, slots=True)
class Layer:
    spec: LayerSpec
    shape: LayerShape
    weights: Weights
    rotates: bool


@dataclass(frozen=True, slots=True)
class OutputMatrix:
    panels: Panels
    shape: tuple[int, int]  # [vocab, hidden], without the panels' padding
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Rotation:
    """Angles are positions times frequencies; their cosines and sines are scaled."""

    frequencies: torch.Tensor  # float32 [rotary / 2]
    scale: float


@dataclass(frozen=True, slots=True)
class Description:
    info: ModelInfo
    num_positions: int
    vectors: torch.Tensor  # [vocab, hidden]
    rotation: Rotation
    layers: tuple[Layer, ...]
    norm: Norm
    output: OutputMatrix
    cache_dtype: torch.dtype  # of keys and values


class Kept(msgspec.Struct, frozen=True):
    """proof: the digest of what the model gave when it was kept."""

    key: str
    proof: str
    description: Description


def encode(kept: Kept) -> tuple[str, list[torch.Tensor]]:
    """The text refers to the tensors by their places in the list."""
    tensors: list[torch.Tensor] = []

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return len(tensors) - 1
        if isinstance(value, torch.dtype | torch.device):
            return str(value).removeprefix("torch.")
        raise NotImplementedError

    return msgspec.json.encode(kept, enc_hook=plain).decode(), tensors


def decode(text: str, tensors: list[torch.Tensor]) -> Kept:
    """Raises msgspec.ValidationError."""

    def made(kind: type, value: Any) -> Any:
        if kind is torch.Tensor:
            return tensors[value]
        if kind is torch.dtype:
            return getattr(torch, value)
        if kind is torch.device:
            return torch.device(value)
        raise NotImplementedError

    return msgspec.json.decode(text, type=Kept, dec_hook=made)
