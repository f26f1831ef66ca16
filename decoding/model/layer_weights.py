"""The weights of a Llama-shaped decoder layer, packed for the CPU's layer kernel.

Whether the parts are put together in the usual way, `fused.py` finds out by trial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.kernels.cpu.panels import Panels, depth_multiple, fits_bfloat16, pack
from decoding.kernels.cpu.tile import PANEL, Format
from decoding.model.llama.parts import LayerParts, Linear, Norm


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


def pack_parts(parts: LayerParts, form: Format | None = None) -> Weights | None:
    """In the given form, else in the smallest that loses nothing. None where the kernel cannot take their widths."""
    products = (parts.qkv, parts.out, _alternate(parts.gate_up), parts.down)
    columns = [len(each.weight) for each in products]
    norms = (parts.input_norm, parts.middle_norm, *(parts.head_norms or ()))
    if any(count % PANEL for count in columns) or any(len(norm.weight) % PANEL for norm in norms):
        return None
    if form is not Format.BFLOAT16_PAIRS and any(each.weight.dtype != torch.float32 for each in products):
        return None
    if any(each.weight.shape[1] % depth_multiple(form) for each in products):
        return None
    form = form or (Format.BFLOAT16 if all(fits_bfloat16(each.weight) for each in products) else Format.FLOAT32)
    packed = [Product(pack(each.weight, form), None if each.bias is None else each.bias.float()) for each in products]
    return Weights(parts.input_norm, parts.middle_norm, parts.head_norms, *packed)


def _alternate(both: Linear) -> Linear:
    """Rows of [gate; up] as a panel of one, a panel of the other."""
    if len(both.weight) % (2 * PANEL):
        return both
    order = torch.arange(len(both.weight)).view(2, -1, PANEL).transpose(0, 1).flatten()
    return Linear(both.weight[order], None if both.bias is None else both.bias[order])
