"""From a causal language model of transformers to one that runs packed batches, in transformers' own model code.

Our attention comes in through its attention interface, our linears by replacing modules (`replace_modules.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import torch
from torch import nn

from decoding.attention.choice import AttentionMaker
from decoding.attention.interface import Batch, DecodeInputs, PagedAttention
from decoding.device import to_device
from decoding.model.agreement import Agreement
from decoding.model.attention_function import TracedAttention, carrying, register, trace
from decoding.model.compatibility import UnsupportedModel, hold_frequencies, position_limit
from decoding.model.graphs import Capture, CudaCapture, DecodeGraphs
from decoding.model.head import Head, headless
from decoding.model.info import describe
from decoding.model.model import Hidden, Model
from decoding.model.prepare import Recipe
from decoding.model.replace_modules import Progress, RowExactProducts, bare_products


def build(
    causal_lm: Any,
    recipe: Recipe,
    agreement: Agreement,
    attention: AttentionMaker,
    *,
    capture: Capture | None,
    progress: Progress,
) -> Model:
    register(causal_lm)
    hold_frequencies(causal_lm)
    traced = trace(causal_lm)
    backend = attention(traced.shapes, causal_lm.device, recipe.cache_dtype(causal_lm.dtype))
    info = describe(causal_lm, agreement.widths, len(traced.specs), position_limit(causal_lm))
    is_compiled = _fuse(causal_lm, traced, backend, recipe, progress)
    recipe.rebuild(causal_lm, progress)
    if capture is None and causal_lm.device.type == "cuda" and backend.is_capturable:
        capture = CudaCapture()
    needs_mode = causal_lm.device.type == "cpu" and any(bare_products(causal_lm))
    products: AbstractContextManager[Any] = RowExactProducts() if needs_mode else nullcontext()
    body = CausalBody(causal_lm, backend, traced, products, capture)
    head = Head(headless(causal_lm), causal_lm.get_output_embeddings(), products)
    return Model(info, body, head, backend, graphs=body.graphs, is_compiled=is_compiled)


class CausalBody(nn.Module):
    """From tokens to hidden states. products: the mode that the model's products need."""

    def __init__(
        self,
        causal_lm: Any,
        attention: PagedAttention,
        traced: TracedAttention,
        products: AbstractContextManager[Any],
        capture: Capture | None,
    ) -> None:
        super().__init__()
        self.base: nn.Module = causal_lm.base_model
        self._embedding: nn.Module = causal_lm.get_input_embeddings()
        self._attention = attention
        self.traced = traced
        self._products = products
        self._device = causal_lm.device
        self.graphs = None if capture is None else DecodeGraphs(self._decode, capture, self._device)

    def forward(self, batch: Batch, layers: tuple[int, ...], shift: int) -> Hidden:
        """A vector of `batch.embeds` is what the model accepts as `inputs_embeds`: it takes the place of the embedding
        module's output, so Gemma expects it scaled already and Granite scales it itself.
        """
        if self.graphs is not None and not layers and not shift:
            replayed = self.graphs.run(batch, self._attention.generation)
            if replayed is not None:
                return Hidden(replayed, {}, {})
        plan = self._attention.plan(batch)
        ids = batch.ids_on(self._device)[None]
        inputs = {"inputs_embeds": self._embed(ids, batch)} if batch.embeds else {"input_ids": ids}
        kept: dict[int, torch.Tensor] = {}
        positions = to_device(batch.positions + shift, self._device)
        with self._keeping(layers, kept):
            last = self._run(plan, positions, **inputs)
        num_layers = len(self.traced.specs)
        if num_layers in layers:
            kept[num_layers] = last
        return Hidden(last, kept, self._attention.probed(plan))

    def _decode(self, inputs: DecodeInputs) -> Callable[[], torch.Tensor]:
        """The forward of one token a row, as something to be recorded: its plan is made now, its work done later."""
        plan = self._attention.decode_plan(inputs)
        return lambda: self._run(plan, inputs.positions, input_ids=inputs.token_ids[None])

    def _run(self, plan: Any, positions: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:  # [T, hidden]
        with self._products, carrying(self.traced.bind(self._attention, plan)) as keywords:
            out = self.base(**inputs, position_ids=positions[None], use_cache=False, **keywords)
        last: torch.Tensor = out.last_hidden_state[0]
        return last

    def _embed(self, ids: torch.Tensor, batch: Batch) -> torch.Tensor:  # [1, T] -> [1, T, hidden]
        embeds: torch.Tensor = self._embedding(ids).clone()
        for token, vector in batch.embeds.items():
            embeds[0, token] = vector.to(embeds)
        return embeds

    def _keeping(self, layers: tuple[int, ...], kept: dict[int, torch.Tensor]) -> ExitStack:
        """While entered, the inputs of the asked decoder layers are kept: hidden_states[i] is what layer i receives."""
        stack = ExitStack()
        num_layers = len(self.traced.specs)
        if layers:
            blocks = decoder_layers(self.base, num_layers)
            for index in set(layers) - {num_layers}:
                handle = blocks[index].register_forward_pre_hook(_keeper(index, kept), with_kwargs=True)
                stack.callback(handle.remove)
        return stack


def _keeper(index: int, kept: dict[int, torch.Tensor]) -> Callable[..., None]:
    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[index] = (args[0] if args else kwargs["hidden_states"])[0]

    return keep


def decoder_layers(base: nn.Module, num_layers: int) -> nn.ModuleList:
    """The base model's stack of layers, or its decoder's."""
    for child in (*base.children(), *cast(Any, base).get_decoder().children()):
        if isinstance(child, nn.ModuleList) and len(child) == num_layers:
            return child
    raise UnsupportedModel(type(base).__name__, f"has no list of {num_layers} decoder layers")


def _fuse(causal_lm: Any, traced: TracedAttention, backend: PagedAttention, recipe: Recipe, progress: Progress) -> bool:
    """Returns whether all layers now run in compiled kernels of the CPU."""
    try:
        blocks = decoder_layers(causal_lm.base_model, len(traced.specs))
    except UnsupportedModel:  # no list of layers: each part is prepared by itself
        return False
    return recipe.fuse_layers(blocks, traced, backend, progress)
