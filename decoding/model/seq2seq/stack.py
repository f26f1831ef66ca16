"""Reads encoders and decoders of transformers: the layers of their two families, in terms of our own.

T5's keep norms before every part and relative biases in their attention; BART's and its kin's have positions in their
embeddings and norms after every part, or before where they also have one at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from decoding.model.seq2seq.embedding import Embedding, read_embedding
from decoding.model.seq2seq.layers import (
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    Linears,
    MemoryProjection,
    Residual,
    SelfAttention,
)
from decoding.model.seq2seq.relative import bidirectional_bias, causal_bias

T5_TYPES = frozenset({"t5", "mt5", "umt5"})
BART_TYPES = frozenset({"bart", "mbart", "marian", "m2m_100"})


@dataclass(frozen=True, slots=True)
class Stack:
    """One half of a model. biases: of each layer's self-attention, where it has one. memory: only a decoder's."""

    embedding: Embedding
    layers: nn.ModuleList
    norm: nn.Module | None
    scaling: float
    biases: tuple[torch.Tensor | None, ...]
    memory: nn.ModuleList


def read_stack(stack: Any, *, is_decoder: bool) -> Stack:
    """Of any supported model's encoder or decoder."""
    return _read_t5(stack, is_decoder) if stack.config.model_type in T5_TYPES else _read_bart(stack, is_decoder)


def _read_t5(stack: Any, is_decoder: bool) -> Stack:
    blocks = [block.layer for block in stack.block]
    heads = int(stack.config.num_heads)
    layers = [_t5_layer(parts, heads, is_decoder) for parts in blocks]
    memory = [MemoryProjection(_t5_linears(parts[1].EncDecAttention), heads) for parts in blocks if is_decoder]
    return Stack(
        read_embedding(stack),
        nn.ModuleList(layers),
        stack.final_layer_norm,
        1.0,
        _t5_biases([parts[0].SelfAttention for parts in blocks], is_decoder),
        nn.ModuleList(memory),
    )


def _t5_layer(parts: Any, heads: int, is_decoder: bool) -> nn.Module:
    attention = Residual(
        SelfAttention(_t5_linears(parts[0].SelfAttention), heads), parts[0].layer_norm, is_norm_first=True
    )
    feed_forward = Residual(_t5_feed_forward(parts[-1].DenseReluDense), parts[-1].layer_norm, is_norm_first=True)
    if not is_decoder:
        return EncoderLayer(attention, feed_forward)
    cross = CrossAttention(_t5_linears(parts[1].EncDecAttention), heads)
    return DecoderLayer(attention, Residual(cross, parts[1].layer_norm, is_norm_first=True), feed_forward)


def _t5_linears(attention: Any) -> Linears:
    return Linears(attention.q, attention.k, attention.v, attention.o)


def _t5_feed_forward(dense: Any) -> FeedForward:
    if hasattr(dense, "wi_0"):
        return FeedForward(dense.wi_1, dense.act, dense.wo, gate=dense.wi_0)
    return FeedForward(dense.wi, dense.act, dense.wo)


def _t5_biases(attentions: list[Any], is_decoder: bool) -> tuple[torch.Tensor, ...]:
    """Layers without a table of their own use the first one's."""
    make = causal_bias if is_decoder else bidirectional_bias
    found: list[torch.Tensor] = []
    for attention in attentions:
        table = getattr(attention, "relative_attention_bias", None)
        own = None if table is None else make(table.weight.detach(), attention.relative_attention_max_distance)
        found.append(found[0] if own is None else own)
    return tuple(found)


def _read_bart(stack: Any, is_decoder: bool) -> Stack:
    norm = getattr(stack, "layer_norm", None)
    attention = stack.layers[0].self_attn
    layers = [_bart_layer(layer, is_decoder, is_norm_first=norm is not None) for layer in stack.layers]
    memory = [
        MemoryProjection(_bart_linears(layer.encoder_attn), layer.encoder_attn.num_heads)
        for layer in stack.layers
        if is_decoder
    ]
    return Stack(
        read_embedding(stack),
        nn.ModuleList(layers),
        norm,
        float(attention.scaling),
        (None,) * len(layers),
        nn.ModuleList(memory),
    )


def _bart_layer(layer: Any, is_decoder: bool, *, is_norm_first: bool) -> nn.Module:
    attention = Residual(
        SelfAttention(_bart_linears(layer.self_attn), layer.self_attn.num_heads),
        layer.self_attn_layer_norm,
        is_norm_first=is_norm_first,
    )
    dense = FeedForward(layer.fc1, layer.activation_fn, layer.fc2)
    feed_forward = Residual(dense, layer.final_layer_norm, is_norm_first=is_norm_first)
    if not is_decoder:
        return EncoderLayer(attention, feed_forward)
    cross = CrossAttention(_bart_linears(layer.encoder_attn), layer.encoder_attn.num_heads)
    return DecoderLayer(
        attention, Residual(cross, layer.encoder_attn_layer_norm, is_norm_first=is_norm_first), feed_forward
    )


def _bart_linears(attention: Any) -> Linears:
    return Linears(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
