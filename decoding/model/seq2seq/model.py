"""An encoder-decoder model of transformers that runs packed batches: T5 and its kin, BART and its kin.

Its layers are our own (`stack.py` reads the weights); the head is transformers', with whatever it scales and adds. It
stands where a causal model stands, and encodes besides.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from decoding.attention.choice import AttentionMaker, default_attention
from decoding.attention.cpu import CPUAttention
from decoding.attention.interface import AttentionBackend, Batch, Memories
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.model.compatibility import TOLERANCE, UnsupportedModel, architecture_of, trials
from decoding.model.model import Given, Hidden, ModelInfo, eos_token_ids
from decoding.model.replace_modules import Progress, make_row_exact, merge_only
from decoding.model.seq2seq.decoder import Decoder
from decoding.model.seq2seq.encoder import Encoder
from decoding.model.seq2seq.stack import BART_TYPES, T5_TYPES, read_stack

UNBOUNDED_POSITIONS = 4096
"""Positions of a model that has no table of them: relative biases go on for ever, but pages must be counted."""
TRIAL_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Generation:
    """What the model's configuration says about its decoder's first and last tokens, and never to say."""

    decoder_start_token_id: int
    forced_bos_token_id: int | None
    forced_eos_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]


class Seq2SeqModel:
    """One loaded model. Not for concurrent use, like `Model`."""

    is_compiled = False

    @property
    def encoder(self) -> Seq2SeqModel:
        return self

    def __init__(self, seq2seq_lm: Any, info: ModelInfo, encoder: Encoder, decoder: Decoder, head: nn.Module) -> None:
        self.info = info
        self.generation = read_generation(seq2seq_lm)
        self.max_source_len = encoder.embedding.num_positions or UNBOUNDED_POSITIONS
        self.attention: AttentionBackend = decoder.attention
        self._encoder, self._decoder, self._head = encoder, decoder, head
        self._lm_head: nn.Module = head.get_submodule("lm_head")

    @torch.inference_mode()
    def encode(self, sources: Batch) -> None:
        """Run whole sources and write their memories."""
        self._decoder.remember(sources, self._encoder(sources))

    @torch.inference_mode()
    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> Hidden:
        hidden: Hidden = self._decoder(batch, layers)
        return hidden

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The logits the model itself would give, scalings and biases included."""
        given = hidden[None]
        logits: torch.Tensor = self._head(encoder_outputs=(given,), decoder_inputs_embeds=given, use_cache=False).logits
        return logits[0].float()

    @torch.inference_mode()
    def project(self, hidden: torch.Tensor) -> torch.Tensor:  # [N, hidden] -> [N, vocab] float32
        """The output matrix alone."""
        logits: torch.Tensor = self._lm_head(hidden)
        return logits.float()


class _Passthrough(nn.Module):
    """Stands where the body was and hands on the decoder states it is given."""

    def forward(
        self,
        *_args: Any,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        **_options: Any,
    ) -> Given:
        return Given(last_hidden_state=inputs_embeds if decoder_inputs_embeds is None else decoder_inputs_embeds)


def headless(seq2seq_lm: Any) -> nn.Module:
    """The model without its halves: its forward turns decoder states into logits as the model does."""
    head: nn.Module = copy.copy(seq2seq_lm)
    bodies = [name for name in ("model", "encoder", "decoder") if name in seq2seq_lm._modules]
    head._modules = {**seq2seq_lm._modules, **{name: _Passthrough() for name in bodies}}
    return head


def check_config(config: Any) -> None:
    if config.model_type not in T5_TYPES | BART_TYPES:
        raise UnsupportedModel(architecture_of(config), "is an encoder-decoder model of an unknown family")


@torch.inference_mode()
def wrap(
    seq2seq_lm: Any,
    *,
    progress: Progress = lambda _phase, _fraction: None,
    attention: AttentionMaker = default_attention,
) -> Seq2SeqModel:
    """Turn a loaded PreTrainedModel into ours. Its modules are replaced: it has no other use after."""
    check_config(seq2seq_lm.config)
    seq2seq_lm.eval()
    with trials(type(seq2seq_lm).__name__):
        return _wrap(seq2seq_lm, progress, attention)


def _wrap(seq2seq_lm: Any, progress: Progress, attention: AttentionMaker) -> Seq2SeqModel:
    agreement = Agreement(seq2seq_lm)
    bodies = seq2seq_lm if seq2seq_lm.config.model_type in T5_TYPES else seq2seq_lm.model
    encoder = Encoder(read_stack(bodies.encoder, is_decoder=False))
    stack = read_stack(bodies.decoder, is_decoder=True)
    device, dtype = seq2seq_lm.device, seq2seq_lm.dtype
    shapes = [_shape(seq2seq_lm.config)] * len(stack.layers)
    has_bias = any(bias is not None for bias in stack.biases)
    backend = biased_attention(shapes, device, dtype) if has_bias else attention(shapes, device, dtype)
    decoder = Decoder(stack, backend)
    head = headless(seq2seq_lm)
    for part in (encoder, decoder, head):
        make_row_exact(part, progress) if device.type == "cpu" else merge_only(part)
    model = Seq2SeqModel(seq2seq_lm, _describe(seq2seq_lm, decoder), encoder, decoder, head)
    agreement.check(model)
    return model


def biased_attention(shapes: list[LayerShape], device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backends that know relative biases."""
    if device.type == "cpu":
        return CPUAttention(shapes)
    return ReferenceAttention(shapes, device=device, dtype=dtype)


def _shape(config: Any) -> LayerShape:
    """Of self-attention and cross-attention alike, so that one cache holds both."""
    if config.model_type in T5_TYPES:
        heads, dim = int(config.num_heads), int(config.d_kv)
    else:
        heads = int(config.decoder_attention_heads)
        dim = int(config.d_model) // heads
    return LayerShape(heads, heads, dim, dim)


def _describe(seq2seq_lm: Any, decoder: Decoder) -> ModelInfo:
    config = seq2seq_lm.config
    return ModelInfo(
        vocab_size=int(seq2seq_lm.get_output_embeddings().out_features),
        max_model_len=decoder.embedding.num_positions or UNBOUNDED_POSITIONS,
        eos_token_ids=eos_token_ids(seq2seq_lm),
        hidden_size=int(config.d_model),
        num_layers=len(decoder.layers),
        ties_embeddings=bool(config.tie_word_embeddings),
        dtype=seq2seq_lm.dtype,
        device=seq2seq_lm.device,
        architecture=type(seq2seq_lm).__name__,
    )


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


class Agreement:
    """Holds the logits a model gives of its own, to compare with what ours gives."""

    def __init__(self, seq2seq_lm: Any) -> None:
        self._architecture = type(seq2seq_lm).__name__
        self._dtype = seq2seq_lm.dtype
        vocab = int(seq2seq_lm.get_output_embeddings().out_features)
        ids = (torch.arange(3, 3 + 2 * TRIAL_TOKENS) % vocab).view(2, TRIAL_TOKENS)
        self._source, self._ids = ids[0].numpy(), ids[1].numpy()
        seq2seq_lm.set_attn_implementation("eager")
        source, decoder_ids = ids.to(seq2seq_lm.device)[:, None].unbind()
        out = seq2seq_lm(input_ids=source, decoder_input_ids=decoder_ids, use_cache=False)
        self._expected = out.logits[0].float()

    def check(self, model: Seq2SeqModel) -> None:
        """Raise UnsupportedModel unless the model gives the same; leaves the backend without pages."""
        size = model.attention.page_size
        count = -(-TRIAL_TOKENS // size)
        model.attention.allocate(1 + 2 * count)
        model.encode(_trial(self._source, np.arange(1, 1 + count), size))
        memories = Memories(np.array([TRIAL_TOKENS]), np.arange(1, 1 + count)[None])
        batch = _trial(self._ids, np.arange(1 + count, 1 + 2 * count), size, memories)
        found = model.head(model.forward(batch).last)
        model.attention.allocate(0)
        error = (found - self._expected).norm(dim=-1) / self._expected.norm(dim=-1).clamp_min(1e-6)
        worst = float(error.max() if self._dtype == torch.float32 else error.median())
        if not worst < TOLERANCE[self._dtype]:
            raise UnsupportedModel(
                self._architecture, f"disagrees with itself over paged attention (error {worst:.3g})"
            )


def _trial(ids: np.ndarray, pages: np.ndarray, page_size: int, memories: Memories | None = None) -> Batch:
    """ids int64 [T]"""
    positions = np.arange(len(ids))
    return Batch(
        token_ids=ids,
        positions=positions,
        slots=pages[positions // page_size] * page_size + positions % page_size,
        query_starts=np.array([0, len(ids)]),
        kv_lengths=np.array([len(ids)]),
        page_tables=pages[None],
        memories=memories,
    )
