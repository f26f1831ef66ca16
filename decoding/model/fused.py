"""Decoder layers of the Llama family as one kernel, in place of transformers' modules.

Recognises a layer by its parts and then by its results: the fused layer must give what the original gives on random
hidden states, or the original stays. Owns the packed weights of the layers and the scratch memory they share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from decoding.attention.compiled import CompiledAttention, CompiledPlan
from decoding.kernels.cpu.layer import LAYER, STACK, run_stack
from decoding.kernels.cpu.panels import rounded_bytes
from decoding.kernels.cpu.products import addresses
from decoding.kernels.cpu.tile import Format
from decoding.model.attention_function import NAME, TracedAttention
from decoding.model.layer_weights import Weights, pack_parts
from decoding.model.llama.parts import read_parts
from decoding.model.llama.trials import Angles, Trial, trials_of

if TYPE_CHECKING:
    from decoding.model.replace_modules import Progress

EXACT_TOLERANCE = 1e-4
# Of weights that meet rows of bfloat16, and of eight-bit numbers; keys and values are bfloat16 then, too.
ROUNDED_TOLERANCES = {Format.BFLOAT16_PAIRS: 5e-2, Format.INT8: 0.1, Format.INT4: 0.1}


class FusedLayer(nn.Module):
    """Stands where a decoder layer was."""

    def __init__(self, stack: FusedStack, index: int) -> None:
        super().__init__()
        self._stack = stack
        self._index = index

    @property
    def stack(self) -> FusedStack:
        return self._stack

    @property
    def weight_bytes(self) -> int:
        return self._stack.weight_bytes(self._index)

    def forward(self, hidden_states: torch.Tensor, *_args: Any, **options: Any) -> torch.Tensor:  # [1, T, hidden]
        return self._stack.output(self._index, hidden_states, options.get("position_embeddings"), options[NAME].plan)


class FusedStack:
    """All fused layers of a model. The first of a run computes the others, which recognise their input by identity.

    A layer that is given any other input computes itself and its followers afresh, so the result never depends on who
    calls what in which order.
    """

    def __init__(self, traced: TracedAttention, attention: CompiledAttention) -> None:
        self._traced, self._attention = traced, attention
        self._weights: dict[int, Weights] = {}
        self._records = np.zeros(len(traced.specs), LAYER)
        self._records["index"] = np.arange(len(self._records))
        self._attention_records: dict[int, np.ndarray] = {}
        self._rotates = np.zeros(len(self._records), np.int64)
        self._stack = np.zeros(1, STACK)
        self._stack["size"] = LAYER.itemsize
        self._buffers: dict[str, torch.Tensor] = {}
        self._bound_to = (0, 0)
        self._given: tuple[Any, ...] = ()
        self._outputs: dict[int, torch.Tensor] = {}

    def put(self, index: int, weights: Weights, *, rotates: bool) -> None:
        self._weights[index] = weights
        self._rotates[index] = rotates
        self._buffers, self._bound_to = {}, (0, 0)  # of other widths, perhaps
        shape = self._attention.shapes[index]
        _describe(self._records[index], weights, shape.head_dim)

    def held(self, index: int) -> tuple[Weights, bool]:
        """What was put there, and whether it rotates."""
        return self._weights[index], bool(self._rotates[index])

    def weight_bytes(self, index: int) -> int:
        weights = self._weights[index]
        return sum(each.panels.data.nbytes for each in (weights.qkv, weights.out, weights.gate_up, weights.down))

    def remove(self, index: int) -> None:
        del self._weights[index]

    def output(self, index: int, x: torch.Tensor, angles: Angles | None, plan: CompiledPlan) -> torch.Tensor:
        """What layer `index` makes of x [1, T, hidden]."""
        if self._outputs.get(index - 1) is not x or self._given != (plan, angles):
            self._outputs = self.run(index, self._run_length(index), x, angles, plan)
            self._given = (plan, angles)
        found = self._outputs[index]
        if index + 1 not in self._outputs:
            self._given, self._outputs = (), {}
        return found

    def run(
        self, first: int, count: int, x: torch.Tensor, angles: Angles | None, plan: CompiledPlan
    ) -> dict[int, torch.Tensor]:
        """Layers first : first + count; returns the output of each."""
        x = x.contiguous()
        tokens = x.shape[1]
        self._check(first, x, angles, plan)
        self._bind(tokens)
        outs = x.new_empty(count, *x.shape)
        step = 4 * x.numel()
        records = self._records[first : first + count]
        records["out"] = outs.data_ptr() + step * np.arange(count)
        records["x"] = records["out"] - step
        records["x"][0] = x.data_ptr()
        records["batch"] = plan.address
        if angles is not None:
            cos, sin = (part.contiguous() for part in angles)
            records["cos"], records["sin"] = cos.data_ptr(), sin.data_ptr()
            records["rotary"] = cos.shape[-1] * self._rotates[first : first + count]
        self._stack["layers"], self._stack["count"] = records.ctypes.data, count
        plan.counts[first:].fill(0)
        self._attention.team.run(run_stack.address, self._stack.ctypes.data)
        last = first + count - 1
        if plan.batch.probe_rows:
            self._attention.probe(self._traced.specs[last], self._queries(last, tokens), plan)
        return {first + i: out for i, out in enumerate(outs.unbind())}

    def _check(self, first: int, x: torch.Tensor, angles: Angles | None, plan: CompiledPlan) -> None:
        """The kernel would go past the ends of anything else."""
        wanted = (1, plan.batch.num_tokens, self._weights[first].hidden)
        if tuple(x.shape) != wanted or x.dtype != torch.float32:
            raise ValueError(f"a layer of {wanted} was given {tuple(x.shape)} of {x.dtype}")
        for part in angles or ():
            if tuple(part.shape[:2]) != wanted[:2] or part.shape[2] > self._attention.shapes[first].head_dim:
                raise ValueError(f"a layer of {wanted} was given angles of {tuple(part.shape)}")

    def _run_length(self, first: int) -> int:
        """How many fused layers of one form follow each other."""
        count = 1
        while (other := self._weights.get(first + count)) and other.form is self._weights[first].form:
            count += 1
        return count

    def _bind(self, tokens: int) -> None:
        """Note where the memory that layers share lies, if it has moved: scratch for as many tokens, and the pages."""
        rows = len(self._buffers["normed"]) if self._buffers else 0
        if tokens > rows:
            rows = max(64, tokens, 2 * rows)
            self._buffers = {name: torch.empty(rows, width) for name, width in self._widths().items()}
            widest = max(buffer.shape[1] for buffer in self._buffers.values())
            self._buffers["rounded"] = torch.empty(rounded_bytes(rows, widest), dtype=torch.uint8)
        if self._bound_to == (rows, self._attention.generation):
            return
        for name, buffer in self._buffers.items():
            self._records[name] = buffer.data_ptr()
        for index in self._weights:
            self._attention_records[index] = self._attention_record(index)
            self._records[index]["attention"] = self._attention_records[index].ctypes.data
        self._bound_to = (rows, self._attention.generation)

    def _widths(self) -> dict[str, int]:
        """Of what a layer's steps hand to each other; the widest layer decides."""
        each = [_widths(weights) for weights in self._weights.values()]
        return {name: max(widths[name] for widths in each) for name in each[0]}

    def _attention_record(self, index: int) -> np.ndarray:
        shape, columns = self._attention.shapes[index], self._weights[index].qkv.panels.columns
        record = self._attention.new_record(self._traced.specs[index])
        start = self._buffers["qkv"].data_ptr()
        record["query"], record["out"] = start, self._buffers["attended"].data_ptr()
        record["key"] = start + 4 * shape.heads * shape.head_dim
        record["value"] = start + 4 * (shape.heads + shape.kv_heads) * shape.head_dim
        for part, dim in (("query", shape.head_dim), ("key", shape.head_dim), ("value", shape.v_head_dim)):
            record[f"{part}_token"], record[f"{part}_head"] = 4 * columns, 4 * dim
        return record

    def _queries(self, index: int, tokens: int) -> torch.Tensor:  # [T, heads, head_dim]
        """Those of the layer that ran last."""
        shape, columns = self._attention.shapes[index], self._weights[index].qkv.panels.columns
        packed = self._buffers["qkv"].flatten()[: tokens * columns].view(tokens, columns)
        return packed[:, : shape.heads * shape.head_dim].view(tokens, shape.heads, shape.head_dim)


def _widths(weights: Weights) -> dict[str, int]:
    hidden, middle = weights.hidden, weights.intermediate
    widths = {"normed": hidden, "projected": hidden, "middle": hidden, "gate_up": 2 * middle, "activated": middle}
    return widths | {"qkv": weights.qkv.panels.columns, "attended": weights.out.panels.depth}


def _describe(record: np.void, weights: Weights, head_dim: int) -> None:
    """Fill in what never changes."""
    for name in ("input", "middle"):
        norm = getattr(weights, f"{name}_norm")
        record[f"{name}_norm"], record[f"{name}_eps"] = norm.weight.data_ptr(), norm.eps
    if weights.head_norms:
        query, key = weights.head_norms
        record["query_norm"], record["key_norm"] = query.weight.data_ptr(), key.weight.data_ptr()
        record["head_eps"] = query.eps
    for name in ("qkv", "out", "gate_up", "down"):
        product = getattr(weights, name)
        record[f"{name}_weight"] = product.panels.address
        record[f"{name}_bias"] = 0 if product.bias is None else product.bias.data_ptr()
    record["hidden"], record["intermediate"], record["head_dim"] = weights.hidden, weights.intermediate, head_dim
    record["qkv_columns"] = weights.qkv.panels.columns
    record["multiply"], record["round_rows"] = addresses(weights.form)


def fuse_layers(
    blocks: nn.ModuleList,
    traced: TracedAttention,
    attention: CompiledAttention,
    progress: Progress,
    form: Format | None = None,
) -> bool:
    """Replace each layer that is recognised and passes its trials; returns whether all were. form: of the weights."""
    stack = FusedStack(traced, attention)
    attention.allocate(2)
    for index, layer in enumerate(blocks):
        parts = read_parts(layer)
        weights = pack_parts(parts, form) if parts is not None and parts.fits(attention.shapes[index]) else None
        if weights is None:
            continue
        layer.float()  # one after the other, where they were loaded in sixteen bits
        trials = trials_of(layer, index, traced, attention)
        if _try(stack, weights, trials, [trial.original(layer) for trial in trials]):
            blocks[index] = FusedLayer(stack, index)
            if hasattr(layer, "attention_type"):
                blocks[index].attention_type = layer.attention_type
        progress("packing layers", (index + 1) / len(blocks))
    attention.allocate(0)
    return all(isinstance(layer, FusedLayer) for layer in blocks)


def _try(stack: FusedStack, weights: Weights, trials: list[Trial], expected: list[torch.Tensor | None]) -> bool:
    """Put the weights into the stack so that the layer comes out as the original gives it, or not at all."""
    index, tolerance = trials[0].index, ROUNDED_TOLERANCES.get(weights.form, EXACT_TOLERANCE)
    for rotates in (True, False):
        stack.put(index, weights, rotates=rotates)
        if all(
            own is not None and trial.agrees(_run_alone(stack, trial), own, tolerance)
            for trial, own in zip(trials, expected, strict=True)
        ):
            return True
    stack.remove(index)
    return False


def _run_alone(stack: FusedStack, trial: Trial) -> torch.Tensor:  # [1, T, hidden]
    return stack.run(trial.index, 1, trial.x, trial.angles, trial.plan())[trial.index]
