"""Reads the weights of a Llama-shaped decoder layer, packed for the layer kernel, or says that it has another shape.

Goes by the names of the parts alone: whether they are put together in the usual way, `fused.py` finds out by trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decoding.kernels.cpu.panels import Panels, depth_multiple, fits_bfloat16, pack
from decoding.kernels.cpu.tile import PANEL, Format

LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
HEAD_NORMS = {"q_norm", "k_norm"}


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor  # [width]
    eps: float


@dataclass(frozen=True, slots=True)
class Product:
    panels: Panels
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a layer. gate_up: a panel of gate, then one of up, and so on."""

    input_norm: Norm
    middle_norm: Norm
    head_norms: tuple[Norm, Norm] | None
    qkv: Product
    out: Product
    gate_up: Product
    down: Product

    @property
    def form(self) -> Format:
        """The same for all products."""
        return self.qkv.panels.form

    @property
    def hidden(self) -> int:
        return self.qkv.panels.depth

    @property
    def intermediate(self) -> int:
        return self.down.panels.depth


@dataclass(frozen=True, slots=True)
class _Linear:
    """Unpacked. weight [columns, depth], bias [columns]"""

    weight: torch.Tensor
    bias: torch.Tensor | None


def read_weights(layer: nn.Module, form: Format | None = None) -> Weights | None:
    """In the given form, else in the smallest that loses nothing.

    None where the layer lacks a part, has another besides, or has widths that the kernel cannot take.
    """
    own = _parts(layer)
    if set(own) != LAYER_PARTS:
        return None
    inner, mlp = _parts(own["self_attn"]), _parts(own["mlp"])
    norms = [_norm(own[name]) for name in ("input_layernorm", "post_attention_layernorm")]
    head_norms = [_norm(inner.pop(name)) for name in sorted(HEAD_NORMS & set(inner), reverse=True)]
    linears = _linears(inner, ("q_proj", "k_proj", "v_proj"), "qkv_proj", "o_proj")
    linears += _linears(mlp, ("gate_proj", "up_proj"), "gate_up_proj", "down_proj")
    if len(linears) != 4 or None in (*norms, *head_norms) or len(head_norms) == 1:
        return None
    return _packed(norms, head_norms, linears, form)


def _packed(norms: list[Any], head_norms: list[Any], linears: list[_Linear], form: Format | None) -> Weights | None:
    qkv, out, both, down = linears
    products = (qkv, out, _alternate(both), down)
    columns = [len(each.weight) for each in products]
    if any(count % PANEL for count in columns) or any(len(norm.weight) % PANEL for norm in (*norms, *head_norms)):
        return None
    if form is not Format.BFLOAT16_PAIRS and any(each.weight.dtype != torch.float32 for each in products):
        return None
    if any(each.weight.shape[1] % depth_multiple(form) for each in products):
        return None
    form = form or (Format.BFLOAT16 if all(fits_bfloat16(each.weight) for each in products) else Format.FLOAT32)
    packed = [Product(pack(each.weight, form), None if each.bias is None else each.bias.float()) for each in products]
    return Weights(norms[0], norms[1], (head_norms[0], head_norms[1]) if head_norms else None, *packed)


def _parts(module: nn.Module) -> dict[str, nn.Module]:
    """Children that compute something: dropout is off and activations are left to the trial."""
    idle = ("Dropout", "SiLU", "SiLUActivation")
    return {name: child for name, child in module.named_children() if type(child).__name__ not in idle}


def _norm(module: nn.Module) -> Norm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    is_known = type(module).__name__.endswith("RMSNorm") and isinstance(weight, torch.Tensor) and isinstance(eps, float)
    return Norm(weight.detach().float(), eps) if is_known else None  # type: ignore[union-attr, arg-type]


def _linears(parts: dict[str, nn.Module], apart: Sequence[str], merged: str, after: str) -> list[_Linear]:
    """[the linears `apart` as one, or `merged`; `after`], empty where the parts are others."""
    if set(parts) not in ({*apart, after}, {merged, after}):
        return []
    if not all(type(each) is nn.Linear for each in parts.values()):
        return []
    names = [merged] if merged in parts else apart
    return [_joined([parts[name] for name in names]), _joined([parts[after]])]


def _joined(linears: Sequence[Any]) -> _Linear:
    weight = torch.cat([each.weight.detach() for each in linears])
    if all(each.bias is None for each in linears):
        return _Linear(weight, None)
    biases = [each.weight.new_zeros(len(each.weight)) if each.bias is None else each.bias.detach() for each in linears]
    return _Linear(weight, torch.cat(biases))


def _alternate(both: _Linear) -> _Linear:
    """Rows of [gate; up] as a panel of one, a panel of the other."""
    if len(both.weight) % (2 * PANEL):
        return both
    order = torch.arange(len(both.weight)).view(2, -1, PANEL).transpose(0, 1).flatten()
    return _Linear(both.weight[order], None if both.bias is None else both.bias[order])
