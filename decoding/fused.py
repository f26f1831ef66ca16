"""Decoder layers of the Llama family as one kernel each, in place of transformers' modules.

Recognises a layer by its parts and then by its results: the fused layer must give what the original gives on random
hidden states, or the original stays. Owns the packed weights of the layers and the scratch memory they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from decoding.attention.interface import Batch, LayerSpec
from decoding.attention.kernel import KernelAttention, KernelPlan
from decoding.kernels.layer import LAYER, layers
from decoding.layer_weights import Norm, Product, Weights, read_weights
from decoding.plug import NAME, PluggedAttention
from decoding.rewrite import Progress

TOLERANCE = 1e-4
TRIAL_TOKENS = 7


class Workspace:
    """What a layer's steps hand to each other, for as many rows as the largest batch so far; all layers share it."""

    FIELDS = ("normed", "qkv", "attended", "projected", "middle", "gate_up", "activated")

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = tuple(widths)
        self.num_rows = 0
        self.buffers: dict[str, torch.Tensor] = {}

    def reserve(self, num_rows: int) -> None:
        if num_rows > self.num_rows:
            self.num_rows = max(64, num_rows, 2 * self.num_rows)
            sizes = zip(self.FIELDS, self._widths, strict=True)
            self.buffers = {name: torch.empty(self.num_rows, width) for name, width in sizes}


class FusedLayer(nn.Module):
    """Takes the place of a decoder layer; its attention's pages and plan are the backend's."""

    def __init__(
        self, weights: Weights, spec: LayerSpec, attention: KernelAttention, workspace: Workspace, *, rotates: bool
    ) -> None:
        super().__init__()
        self._weights, self._spec, self._attention, self._workspace = weights, spec, attention, workspace
        self._rotates = rotates
        self.hidden = weights.hidden
        self._record = np.zeros(1, LAYER)
        self._words = self._record.view(np.int64)
        self._address = self._record.ctypes.data
        self._kernel = layers[weights.qkv.panels.form].address
        self._bound_to = (0, 0)
        _describe(self._record, weights)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [1, T, hidden]
        *_args: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,  # [1, T, rotary] each
        **options: Any,
    ) -> torch.Tensor:
        plan: KernelPlan = options[NAME].plan
        x, out = hidden_states.contiguous(), torch.empty_like(hidden_states)
        self._workspace.reserve(x.shape[1])
        if self._bound_to != (self._workspace.num_rows, self._attention.num_allocations):
            self._bind()
        cos, sin, rotary = x, x, 0
        if self._rotates and position_embeddings is not None:
            cos, sin = (part.contiguous() for part in position_embeddings)
            rotary = cos.shape[-1]
        self._words[:6] = (x.data_ptr(), out.data_ptr(), cos.data_ptr(), sin.data_ptr(), plan.address, rotary)
        plan.counters.fill(0)
        self._attention.team.run(self._kernel, self._address)
        if plan.batch.probe_rows:
            self._attention.probe(self._spec, self._queries(x.shape[1]), plan)
        return out

    def _bind(self) -> None:
        """Note where the shared memory lies now."""
        record, buffers = self._record, self._workspace.buffers
        for name, buffer in buffers.items():
            record[name] = buffer.data_ptr()
        shape, columns = self._attention.shapes[self._spec.layer], self._weights.qkv.panels.columns
        self._attention_record = self._attention.new_record(self._spec)
        inner, start = self._attention_record, buffers["qkv"].data_ptr()
        inner["query"], inner["out"] = start, buffers["attended"].data_ptr()
        inner["key"] = start + 4 * shape.heads * shape.head_dim
        inner["value"] = start + 4 * (shape.heads + shape.kv_heads) * shape.head_dim
        for part in ("query", "key"):
            inner[f"{part}_token"], inner[f"{part}_head"] = 4 * columns, 4 * shape.head_dim
        inner["value_token"], inner["value_head"] = 4 * columns, 4 * shape.v_head_dim
        record["attention"] = inner.ctypes.data
        self._bound_to = (self._workspace.num_rows, self._attention.num_allocations)

    def _queries(self, tokens: int) -> torch.Tensor:  # [T, heads, head_dim]
        shape, qkv = self._attention.shapes[self._spec.layer], self._workspace.buffers["qkv"]
        packed = qkv.flatten()[: tokens * self._weights.qkv.panels.columns].view(tokens, -1)
        return packed[:, : shape.heads * shape.head_dim].view(tokens, shape.heads, shape.head_dim)


def _describe(record: np.ndarray, weights: Weights) -> None:
    """Fill in what never changes."""
    for name in ("input", "middle"):
        norm: Norm = getattr(weights, f"{name}_norm")
        record[f"{name}_norm"], record[f"{name}_eps"] = norm.weight.data_ptr(), norm.eps
    if weights.head_norms:
        query, key = weights.head_norms
        record["query_norm"], record["key_norm"], record["head_eps"] = (
            query.weight.data_ptr(),
            key.weight.data_ptr(),
            query.eps,
        )
    for name in ("qkv", "out", "gate_up", "down"):
        product: Product = getattr(weights, name)
        record[f"{name}_weight"] = product.panels.address
        record[f"{name}_bias"] = 0 if product.bias is None else product.bias.data_ptr()
    record["hidden"], record["intermediate"] = weights.hidden, weights.intermediate
    record["qkv_columns"] = weights.qkv.panels.columns


def fuse_layers(
    blocks: nn.ModuleList, plugged: PluggedAttention, attention: KernelAttention, progress: Progress
) -> None:
    """Replace each layer that is recognised and passes its trial."""
    workspace: Workspace | None = None
    attention.allocate(2)
    for index, layer in enumerate(blocks):
        weights = read_weights(layer)
        if weights is None:
            continue
        workspace = workspace or Workspace(_widths(weights))
        candidates = (
            FusedLayer(weights, plugged.specs[index], attention, workspace, rotates=rotates)
            for rotates in (True, False)
        )
        fitting = next((each for each in candidates if agrees(each, layer, plugged, attention, index)), None)
        if fitting is not None:
            if hasattr(layer, "attention_type"):
                fitting.attention_type = layer.attention_type
            blocks[index] = fitting
        progress("packing weights", (index + 1) / len(blocks))
    attention.allocate(0)


def agrees(
    fused: FusedLayer, layer: nn.Module, plugged: PluggedAttention, attention: KernelAttention, index: int
) -> bool:
    """Whether both give the same for random hidden states and angles."""
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(1, TRIAL_TOKENS, fused.hidden, generator=generator)
    angles = torch.rand(1, TRIAL_TOKENS, attention.shapes[index].head_dim, generator=generator)
    positions = np.arange(TRIAL_TOKENS)
    batch = Batch(
        token_ids=positions,
        positions=positions,
        slots=positions + attention.page_size,
        query_starts=np.array([0, TRIAL_TOKENS]),
        kv_lengths=np.array([TRIAL_TOKENS]),
        page_tables=np.array([[1]]),
    )
    options = {
        "attention_mask": None,
        "position_ids": torch.from_numpy(positions)[None],
        "position_embeddings": (angles.cos(), angles.sin()),
        "past_key_values": None,
        "use_cache": False,
        NAME: plugged.bind(attention, attention.plan(batch)),
    }
    try:
        expected = layer(x, **options)
    except (TypeError, RuntimeError, ValueError):
        return False
    if not isinstance(expected, torch.Tensor):
        return False
    return bool((fused(x, **options) - expected).norm() < TOLERANCE * (expected - x).norm())


def _widths(weights: Weights) -> tuple[int, ...]:
    hidden, middle = weights.hidden, weights.intermediate
    return (hidden, weights.qkv.panels.columns, weights.out.panels.depth, hidden, hidden, 2 * middle, middle)
