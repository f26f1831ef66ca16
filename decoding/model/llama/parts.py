"""Reads the parts of a Llama-shaped decoder layer, or says that it has another shape.

Goes by the names of the parts alone: whether they are put together in the usual way is found out by trial
(`trials.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decoding.attention.pages import LayerShape

LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
HEAD_NORMS = {"q_norm", "k_norm"}


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor  # float32 [width]
    eps: float


@dataclass(frozen=True, slots=True)
class Linear:
    """weight [columns, depth], bias [columns]"""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LayerParts:
    """All of a layer. head_norms: of queries and of keys. qkv, gate_up: linears of one input, one below the other."""

    input_norm: Norm
    middle_norm: Norm
    head_norms: tuple[Norm, Norm] | None
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear

    def fits(self, shape: LayerShape) -> bool:
        """Whether all widths are those that a kernel goes by, given the layer's attention."""
        hidden, heads = len(self.input_norm.weight), (shape.heads + shape.kv_heads) * shape.head_dim
        intermediate = self.down.weight.shape[1]
        sides = [(part.weight.shape[0], part.weight.shape[1]) for part in (self.qkv, self.out, self.gate_up, self.down)]
        return (
            sides
            == [
                (heads + shape.kv_heads * shape.v_head_dim, hidden),
                (hidden, shape.heads * shape.v_head_dim),
                (2 * intermediate, hidden),
                (hidden, intermediate),
            ]
            and len(self.middle_norm.weight) == hidden
            and all(len(norm.weight) == shape.head_dim for norm in self.head_norms or ())
        )


def read_parts(layer: nn.Module) -> LayerParts | None:
    """None where the layer lacks a part or has another besides."""
    own = _parts(layer)
    if set(own) != LAYER_PARTS or _takes_positions(layer):
        return None
    inner, mlp = _parts(own["self_attn"]), _parts(own["mlp"])
    norms: list[Any] = [_norm(own[name]) for name in ("input_layernorm", "post_attention_layernorm")]
    head_norms: list[Any] = [_norm(inner.pop(name)) for name in sorted(HEAD_NORMS & set(inner), reverse=True)]
    linears = _linears(inner, ("q_proj", "k_proj", "v_proj"), "qkv_proj", "o_proj")
    linears += _linears(mlp, ("gate_proj", "up_proj"), "gate_up_proj", "down_proj")
    if len(linears) != 4 or None in (*norms, *head_norms) or len(head_norms) == 1:
        return None
    both = (head_norms[0], head_norms[1]) if head_norms else None
    return LayerParts(norms[0], norms[1], both, *linears)


def _takes_positions(layer: nn.Module) -> bool:
    """Whether its attention wants the positions themselves, of which kernels know cosines and sines alone."""
    forward = getattr(getattr(layer, "self_attn", None), "forward", None)
    return forward is not None and "position_ids" in inspect.signature(forward).parameters


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Children that compute something: dropout is off and activations are left to the trial."""
    idle = ("Dropout", "SiLU", "SiLUActivation")
    return {name: child for name, child in module.named_children() if type(child).__name__ not in idle}


def _norm(module: nn.Module) -> Norm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    is_known = type(module).__name__.endswith("RMSNorm") and isinstance(weight, torch.Tensor) and isinstance(eps, float)
    return Norm(weight.detach().float(), eps) if is_known else None  # type: ignore[union-attr, arg-type]


def _linears(parts: dict[str, nn.Module], apart: Sequence[str], merged: str, after: str) -> list[Linear]:
    """[the linears `apart` as one, or `merged`; `after`], empty where the parts are others."""
    if set(parts) not in ({*apart, after}, {merged, after}):
        return []
    if not all(type(each) is nn.Linear for each in parts.values()):
        return []
    names = [merged] if merged in parts else apart
    return [_joined([parts[name] for name in names]), _joined([parts[after]])]


def _joined(linears: Sequence[Any]) -> Linear:
    weights = [each.weight.detach() for each in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    if all(each.bias is None for each in linears):
        return Linear(weight, None)
    biases = [each.weight.new_zeros(len(each.weight)) if each.bias is None else each.bias.detach() for each in linears]
    return Linear(weight, torch.cat(biases))
