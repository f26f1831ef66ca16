"""Tiny random encoder-decoder models that any transformers release builds bit for bit, like `tiny.py`'s causal ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from tests.goldens.tiny import LIMIT, SCALE, fill, perturbed

VOCAB = 64
MANY_EOS = (9, 20, 33, 45, 57)  # beside the model's own, so that texts end
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
    "forced_eos_token_id": None, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seq2SeqSpec:
    """start: the decoder's. is_searched: recorded with every strategy, not greedily alone. bias: final_logits_bias is
    filled as well."""

    name: str
    model_type: str
    config: dict[str, Any] = field(repr=False)
    seed: int
    start: int
    eos_token_ids: tuple[int, ...]
    is_searched: bool = True

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])


MODELS = (
    Seq2SeqSpec("t5", "t5", T5, 16, 0, (1, *MANY_EOS)),
    Seq2SeqSpec(
        "flan-t5", "t5", T5 | {"feed_forward_proj": "gated-gelu"}, 2, 0, (1,),
        is_searched=False,
    ),
    Seq2SeqSpec("umt5", "umt5", T5, 23, 0, (1,), is_searched=False),
    Seq2SeqSpec("bart", "bart", BART | {"decoder_start_token_id": 2}, 14, 2, (2, *MANY_EOS)),
    Seq2SeqSpec(
        "mbart", "mbart", BART | {"scale_embedding": True, "decoder_start_token_id": 2}, 10, 2, (2,), is_searched=False
    ),
    Seq2SeqSpec(
        "marian", "marian",
        BART | {"pad_token_id": VOCAB - 1, "decoder_start_token_id": VOCAB - 1, "eos_token_id": 0, "bos_token_id": 0,
                "scale_embedding": True, "activation_function": "swish"},
        8, VOCAB - 1, (0, *MANY_EOS),
    ),
    Seq2SeqSpec(
        "m2m_100", "m2m_100", BART | {"scale_embedding": True, "decoder_start_token_id": 2}, 22, 2, (2, *MANY_EOS)
    ),
)  # fmt: skip


def build(spec: Seq2SeqSpec) -> Any:
    """The model of `spec` in float32 and eval mode; attention is eager."""
    config = AutoConfig.for_model(spec.model_type, **spec.config)
    auto: Any = AutoModelForSeq2SeqLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    fill(model, spec.seed)
    _fill_rest(model, spec)
    return model


@torch.no_grad()
def _fill_rest(model: Any, spec: Seq2SeqSpec) -> None:
    """An output matrix of its own and loud positions, or most models would repeat one token for ever (what a tied T5
    scales stays scaled); and a logits bias, which is a buffer that `fill` leaves alone."""
    for name, parameter in model.named_parameters():
        if name.endswith("embed_positions.weight"):
            parameter.mul_(6)
    generator = torch.Generator().manual_seed(1000 + spec.seed)
    drawn = torch.randint(-LIMIT, LIMIT + 1, model.lm_head.weight.shape, generator=generator)
    if spec.name == "flan-t5":  # as from a checkpoint that ties nothing: 4.55.4 knows it by one word, 5.x by the other
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs = False
    model.lm_head.weight = torch.nn.Parameter(drawn / SCALE)
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        bias.copy_(torch.randint(-64, 65, bias.shape, generator=generator) / 64)


def perturbed_twin(spec: Seq2SeqSpec, noise: int) -> Any:
    """A draft model that mostly agrees."""
    return perturbed(build(spec), noise)
