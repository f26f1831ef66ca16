"""Decoder layers of the Llama family on a GPU in half as many launches: products, attention, and four small kernels.

A decode step of few rows takes as long as its launches: each costs about two microseconds, also inside of a CUDA graph,
and transformers' layers make some twenty beside products and attention. Takes over the modules that `make_fast` left;
recognises a layer by its parts and then by its results: it must give what the original gives on random hidden states,
or the original stays. Owns no weights and no kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from decoding.attention.interface import AttentionBackend, Batch
from decoding.attention.pages import LayerShape
from decoding.layer_ops import triton as ops
from decoding.layer_ops.norm import Norm
from decoding.linear import LinearPart
from decoding.plug import NAME, PluggedAttention
from decoding.rewrite import PlainLinear

TRIAL_TOKENS = 7
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of what the layer adds to its input; in half precision either rounds where the other does not."""

IDLE = ("Dropout", "SiLU", "SiLUActivation")  # nothing, or left to the trial
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Parts:
    """head_norms: of queries and of keys. gate_up: one after the other."""

    input_norm: Norm
    middle_norm: Norm
    head_norms: tuple[Norm, Norm] | None
    qkv: Product
    out: Product
    gate_up: Product
    down: Product


class LeanLayer(nn.Module):
    """Stands where a decoder layer was, and keeps it, for its modules hold the weights."""

    def __init__(self, layer: nn.Module, parts: Parts, shape: LayerShape, index: int, *, rotates: bool) -> None:
        super().__init__()
        self.layer = layer
        self.layer_idx = index
        self._parts = parts
        self._shape = shape
        self._rotates = rotates
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **options: Any) -> torch.Tensor:  # [1, T, hidden]
        parts = self._parts
        attended = self._attend(parts.qkv(ops.norm(hidden_states, parts.input_norm)), options)
        hidden_states, normed = ops.add_norm(hidden_states, parts.out(attended), parts.middle_norm)
        return hidden_states + parts.down(ops.silu_product(parts.gate_up(normed)))

    def _attend(self, qkv: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:  # [1, T, row] -> [1, T, heads * dim]
        shape = self._shape
        angles = options["position_embeddings"] if self._rotates else None
        ops.rotate(qkv, shape, angles, self._parts.head_norms)
        sizes = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
        query, key, value = (
            part.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2) for part in qkv.split_with_sizes(sizes, -1)
        )
        found: torch.Tensor = options[NAME].receive(self, query, key, value, {})
        return found.flatten(2)


def read_parts(layer: nn.Module) -> Parts | None:
    """None where the layer lacks a part or has another besides."""
    own = _children(layer)
    if set(own) != {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}:
        return None
    inner, mlp = _children(own["self_attn"]), _children(own["mlp"])
    norms = [_norm(own["input_layernorm"]), _norm(own["post_attention_layernorm"])]
    head_norms = [_norm(inner.pop(name)) for name in ("q_norm", "k_norm") if name in inner]
    products = [
        *_products(inner, ("q_proj", "k_proj", "v_proj"), "qkv_proj", "o_proj"),
        *_products(mlp, ("gate_proj", "up_proj"), "gate_up_proj", "down_proj"),
    ]
    found = [norm for norm in (*norms, *head_norms) if norm is not None]
    if len(products) != 4 or len(found) not in (2, 4) or len(found) != 2 + len(head_norms):
        return None
    return Parts(found[0], found[1], (found[2], found[3]) if head_norms else None, *products)


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if type(child).__name__ not in IDLE}


def _norm(module: nn.Module) -> Norm | None:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    is_known = type(module).__name__.endswith("RMSNorm") and isinstance(weight, torch.Tensor) and isinstance(eps, float)
    return Norm(weight.detach(), eps) if is_known else None  # type: ignore[union-attr, arg-type]


def _products(parts: dict[str, nn.Module], apart: tuple[str, ...], whole: str, after: str) -> list[Product]:
    """The one product behind `apart`, or `whole`; and `after`. Empty where the parts are others."""
    if set(parts) == {*apart, after}:
        first = parts[apart[0]]
        merged = first.merged if isinstance(first, LinearPart) else None
        if merged is None or any(getattr(parts[name], "merged", None) is not merged for name in apart):
            return []
        return [merged.product, parts[after]] if isinstance(merged.product, PlainLinear) else []
    if set(parts) == {whole, after}:
        return [parts[whole], parts[after]]
    return []


def replace_layers(
    blocks: nn.ModuleList, plugged: PluggedAttention, attention: AttentionBackend, shapes: Sequence[LayerShape]
) -> int:
    """Replace each layer that is recognised and passes its trial; returns how many were. Leaves no pages behind."""
    attention.allocate(2)
    replaced = 0
    for index, layer in enumerate(blocks):
        parts = read_parts(layer)
        if parts is None:
            continue
        trial = _Trial(index, parts.input_norm.weight, shapes[index], plugged, attention)
        found = _tried(layer, parts, trial)
        if found is not None:
            blocks[index] = found
            replaced += 1
    attention.allocate(0)
    return replaced


def _tried(layer: nn.Module, parts: Parts, trial: _Trial) -> LeanLayer | None:
    """The lean layer, rotating heads or not, that comes out as the original; None where neither does."""
    try:
        expected = trial.run(layer)
        for rotates in (True, False):
            lean = LeanLayer(layer, parts, trial.shape, trial.index, rotates=rotates)
            if trial.agrees(trial.run(lean), expected):
                return lean
    except Exception as error:  # whatever it is, the original does without
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"layer {trial.index} stays as transformers has it: {reason}", stacklevel=2)
    return None


class _Trial:
    """Random hidden states and angles for one layer over one page."""

    def __init__(
        self, index: int, like: torch.Tensor, shape: LayerShape, plugged: PluggedAttention, attention: AttentionBackend
    ) -> None:
        generator = torch.Generator().manual_seed(index)
        self.index, self.shape = index, shape
        self._plugged, self._attention = plugged, attention
        # Small, or in half precision the sum with what a layer adds would round most of that away.
        self._x = (torch.randn(1, TRIAL_TOKENS, len(like), generator=generator) / 16).to(like)
        angles = torch.rand(1, TRIAL_TOKENS, shape.head_dim, generator=generator)
        self._angles = (angles.cos().to(like), angles.sin().to(like))

    def run(self, layer: nn.Module) -> torch.Tensor:
        positions = np.arange(TRIAL_TOKENS)
        batch = Batch(
            token_ids=positions,
            positions=positions,
            slots=positions + self._attention.page_size,
            query_starts=np.array([0, TRIAL_TOKENS]),
            kv_lengths=np.array([TRIAL_TOKENS]),
            page_tables=np.array([[1]]),
        )
        found = layer(
            self._x,
            attention_mask=None,
            position_ids=torch.from_numpy(positions).to(self._x.device)[None],
            position_embeddings=self._angles,
            past_key_values=None,
            use_cache=False,
            **{NAME: self._plugged.bind(self._attention, self._attention.plan(batch))},
        )
        if not isinstance(found, torch.Tensor):
            raise TypeError("its layers return more than hidden states")
        return found

    def agrees(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        error, size = (part.float().norm() for part in (found - expected, expected - self._x))
        return bool(error < TOLERANCE[self._x.dtype] * size)
