"""Tiny GGUF files written as llama.cpp's converter writes them, from transformers models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from transformers import PreTrainedModel

from server.text.vocabulary import byte_alphabet
from tests.decoding.tiny import tiny

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 320}
SPECIAL = ("<s>", "</s>", "<pad>")

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

Write = Callable[[gguf.GGUFWriter], None]


def sized(name: str, **options: Any) -> PreTrainedModel:
    """A tiny model whose rows fill whole blocks of 32."""
    return tiny(name, **(SIZES | options))


def rounded(model: PreTrainedModel, kind: GGMLQuantizationType) -> PreTrainedModel:
    """The model with the weights that a file of that type gives back, in bfloat16's numbers where it is smaller."""
    for weight in model.parameters():
        if weight.dim() > 1 and kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            values = quants.dequantize(quants.quantize(weight.detach().numpy(), kind), kind)
            weight.data = torch.from_numpy(values).bfloat16().float()
        elif weight.dim() > 1 and kind == GGMLQuantizationType.F16:
            weight.data = weight.data.half().float()
    return model


def write(path: Path, model: PreTrainedModel, kind: GGMLQuantizationType, *changes: Write, words: Write) -> Path:
    """words: the vocabulary; changes: what is written otherwise after all."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    words(writer)
    state = model.state_dict()
    for name, weight in state.items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            _add(writer, name, weight.float().numpy(), kind, config)
    for change in changes:
        change(writer)
    return finish(writer, path)


def finish(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: GGMLQuantizationType, config: Any) -> None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.split(".")[-2]
    if config.model_type == "llama" and part in heads:
        halves = values.reshape(heads[part], 2, -1, *values.shape[1:])
        values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if config.model_type == "gemma" and "norm" in part:
        values = values + np.float32(1)
    kind = kind if values.ndim > 1 else GGMLQuantizationType.F32
    writer.add_tensor(_name(name), quants.quantize(values, kind), raw_dtype=kind)


def _name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def byte_words(pre: str, *merges: str, template: str = "", adds_bos: bool | None = None) -> Write:
    """A byte-level vocabulary: special tokens, every byte, what the merges make."""

    def add(writer: gguf.GGUFWriter) -> None:
        tokens = [*SPECIAL, *byte_alphabet(), *(merge.replace(" ", "") for merge in merges), "<tool>"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL) - 1) + [4])
        writer.add_token_merges(merges)
        _add_special(writer, adds_bos, template)

    return add


def score_words(*scored: tuple[str, float], prefixes: bool = True) -> Write:
    """A SentencePiece vocabulary: special tokens, every byte, the given ones."""

    def add(writer: gguf.GGUFWriter) -> None:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in scored)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(scored))
        writer.add_token_scores([0.0] * 259 + [score for _, score in scored])
        writer.add_add_space_prefix(prefixes)

    return add


def _add_special(writer: gguf.GGUFWriter, adds_bos: bool | None, template: str) -> None:
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    if adds_bos is not None:
        writer.add_add_bos_token(adds_bos)
    if template:
        writer.add_chat_template(template)


WORDS = byte_words("gpt-2", "a b", "ab c")
