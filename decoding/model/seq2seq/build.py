"""From an encoder-decoder model of transformers, T5 and its kin or BART and its kin, to one that runs packed batches.

Its layers are our own (`stack.py` reads the weights); the head is transformers', with whatever it scales and adds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from decoding.attention.choice import AttentionMaker
from decoding.attention.interface import Batch
from decoding.attention.pages import LayerShape
from decoding.model.agreement import Agreement
from decoding.model.compatibility import UnsupportedModel
from decoding.model.head import Head, headless
from decoding.model.info import describe
from decoding.model.model import Model
from decoding.model.prepare import Recipe
from decoding.model.replace_modules import Progress
from decoding.model.seq2seq.decoder import Decoder
from decoding.model.seq2seq.encoder import Encoder
from decoding.model.seq2seq.stack import T5_TYPES, read_stack

UNBOUNDED_POSITIONS = 4096
"""Positions of a model that has no table of them: relative biases go on for ever, but pages must be counted."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What the configuration says of the decoder's first and last tokens, and of those never to say."""

    decoder_start_token_id: int
    forced_bos_token_id: int | None
    forced_eos_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]


class SourceEncoder:
    """The encoder as the engine has it: it leaves what it reads with the decoder's attention."""

    def __init__(self, encoder: Encoder, decoder: Decoder, generation: Generation) -> None:
        self.generation = generation
        self.max_source_len = encoder.embedding.num_positions or UNBOUNDED_POSITIONS
        self._encoder, self._decoder = encoder, decoder

    @torch.inference_mode()
    def encode(self, sources: Batch) -> None:
        """Run whole sources and write their memories."""
        self._decoder.remember(sources, self._encoder(sources))


def build(
    seq2seq_lm: Any, recipe: Recipe, agreement: Agreement, attention: AttentionMaker, *, progress: Progress
) -> Model:
    dtype = seq2seq_lm.dtype
    if recipe.rounding == "bfloat16":
        seq2seq_lm.float()  # whose products are packed in sixteen bits, and lose nothing by it
    bodies = seq2seq_lm if seq2seq_lm.config.model_type in T5_TYPES else seq2seq_lm.model
    encoder = Encoder(read_stack(bodies.encoder, is_decoder=False))
    stack = read_stack(bodies.decoder, is_decoder=True)
    shapes = [_shape(seq2seq_lm.config, has_bias=bias is not None) for bias in stack.biases]
    decoder = Decoder(stack, attention(shapes, seq2seq_lm.device, dtype))
    head = headless(seq2seq_lm)
    for part in (encoder, decoder, head):
        recipe.rebuild(part, progress)
    max_model_len = decoder.embedding.num_positions or UNBOUNDED_POSITIONS
    info = replace(describe(seq2seq_lm, agreement.widths, len(decoder.layers), max_model_len), dtype=dtype)
    sources = SourceEncoder(encoder, decoder, read_generation(seq2seq_lm))
    return Model(info, decoder, Head(head, head.get_submodule("lm_head")), decoder.attention, encoder=sources)


def _shape(config: Any, *, has_bias: bool) -> LayerShape:
    """Of self-attention and cross-attention alike, so that one cache holds both."""
    if config.model_type in T5_TYPES:
        heads, dim = int(config.num_heads), int(config.d_kv)
    else:
        heads = int(config.decoder_attention_heads)
        dim = int(config.d_model) // heads
    return LayerShape(heads, heads, dim, dim, has_bias)


def read_generation(seq2seq_lm: Any) -> Generation:
    """The generation configuration's word, or else the configuration's."""

    def named(name: str) -> Any:
        found = getattr(seq2seq_lm.generation_config, name, None)
        return getattr(seq2seq_lm.config, name, None) if found is None else found

    start = named("decoder_start_token_id")
    start = named("bos_token_id") if start is None else start
    if start is None:
        raise UnsupportedModel(type(seq2seq_lm).__name__, "does not say which token its decoder starts with")
    eos = named("forced_eos_token_id")
    words = [tuple(word) for word in named("bad_words_ids") or ()] + [(i,) for i in named("suppress_tokens") or ()]
    return Generation(
        decoder_start_token_id=int(start),
        forced_bos_token_id=named("forced_bos_token_id"),
        forced_eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,),
        bad_words=tuple(words),
    )
