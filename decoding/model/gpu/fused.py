"""Decoder layers of the Llama family in few launches, in place of transformers' modules.

Recognises a layer by its parts and then by its results: the fused layer must give what the original gives on random
hidden states, or the original stays. Adding up, normalising, rotating and writing keys and values cost three launches,
the activation one, products four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from decoding.attention.interface import LayerSpec, PagedAttention
from decoding.attention.triton import TritonAttention, TritonPlan
from decoding.model.attention_function import NAME, TracedAttention
from decoding.model.gpu.products import BuildProduct, Product
from decoding.model.gpu.steps import Angles, Placing, activated, added_and_normalised, normalised, placed, quantised
from decoding.model.llama.parts import LayerParts, read_parts
from decoding.model.llama.trials import Trial, trials_of

if TYPE_CHECKING:
    from decoding.model.replace_modules import Progress

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
QUANTISED_TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class Products:
    qkv: Product
    out: Product
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, parts: LayerParts, build: BuildProduct) -> Products:
        each = (parts.qkv, parts.out, parts.gate_up, parts.down)
        return cls(*(build(part.weight, part.bias) for part in each))


class FusedLayer(nn.Module):
    """Stands where a decoder layer was. is_rotating: whether it makes use of the angles it is given."""

    def __init__(
        self,
        parts: LayerParts,
        products: Products,
        spec: LayerSpec,
        attention: TritonAttention,
        *,
        is_rotating: bool,
    ) -> None:
        super().__init__()
        self._norms = parts.input_norm, parts.middle_norm
        self._head_norms = parts.head_norms
        self._products = products
        self._spec = spec
        self._attention = attention
        self._is_rotating = is_rotating

    @property
    def weight_bytes(self) -> int:
        each = self._products
        return sum(product.weight_bytes for product in (each.qkv, each.out, each.gate_up, each.down))

    @property
    def tolerance(self) -> float:
        """How far from the original it may be."""
        product = self._products.qkv
        return QUANTISED_TOLERANCE if product.quantises else TOLERANCES[product.weight.dtype]

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **options: Any) -> torch.Tensor:  # [1, T, hidden]
        """Of what a product takes in eight bits, the step before it leaves eight bits."""
        products, (input_norm, middle_norm) = self._products, self._norms
        x = hidden_states[0].contiguous()
        qkv = products.qkv.of(normalised(x, input_norm, quantises=products.qkv.quantises))
        attended = self._attended(qkv, options.get("position_embeddings"), options[NAME].plan)
        delta = products.out.of(quantised(attended) if products.out.quantises else (attended, None))
        x, normed = added_and_normalised(x, delta, middle_norm, quantises=products.gate_up.quantises)
        middle = activated(products.gate_up.of(normed), quantises=products.down.quantises)
        return products.down.add_to(x, middle)[None]

    def _attended(self, qkv: torch.Tensor, angles: Angles | None, plan: TritonPlan) -> torch.Tensor:
        """[T, query | key | value] -> [T, heads * v_head_dim]."""
        placing = Placing(self._attention.pages, self._spec.layer, plan.slots, self._head_norms)
        query = placed(qkv, placing, angles if self._is_rotating else None)
        return self._attention.attend(self._spec, query.transpose(0, 1)[None], plan)[0].flatten(1)


def fuse_over(
    attention: PagedAttention, blocks: nn.ModuleList, traced: TracedAttention, build: BuildProduct, progress: Progress
) -> None:
    """Replace each layer that is recognised and passes its trials, where attention is Triton's."""
    if not isinstance(attention, TritonAttention):
        return
    attention.allocate(2)
    for index, layer in enumerate(blocks):
        fused = _fused(layer, index, traced, attention, build)
        if fused is not None:
            if hasattr(layer, "attention_type"):
                fused.attention_type = layer.attention_type
            blocks[index] = fused
        progress("fusing layers", (index + 1) / len(blocks))
    attention.allocate(0)


def _fused(
    layer: nn.Module, index: int, traced: TracedAttention, attention: TritonAttention, build: BuildProduct
) -> FusedLayer | None:
    """One that gives what the layer gives, or None."""
    parts = read_parts(layer)
    if parts is None or not parts.fits(traced.shapes[index]):
        return None
    trials = trials_of(layer, index, traced, attention)
    expected = [trial.original(layer) for trial in trials]
    products = Products.of(parts, build)
    for is_rotating in (True, False):
        fused = FusedLayer(parts, products, traced.specs[index], attention, is_rotating=is_rotating)
        if all(_agrees(trial, fused, own) for trial, own in zip(trials, expected, strict=True)):
            return fused
    return None


def _agrees(trial: Trial, fused: FusedLayer, expected: torch.Tensor | None) -> bool:
    found = None if expected is None else trial.run(fused)
    return expected is not None and found is not None and trial.agrees(found, expected, fused.tolerance)
