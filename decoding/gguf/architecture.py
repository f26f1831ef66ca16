"""What GGUF calls an architecture, in transformers' words: the configuration, and every tensor's name and shape.

An architecture is listed here when llama.cpp computes with it what transformers' class of that name does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decoding.gguf.reader import Reader, UnsupportedFile

Config = dict[str, Any]

# What no key of a GGUF file tells: the parameters of Llama 3's frequency scaling, the same in all of its models.
LLAMA3_ROPE: Mapping[str, Any] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """rotates_pairs: queries and keys lie in GGUF's order of rotary pairs. qkv_bias, bias: of which projections; None:
    the file decides. norm_offset: what the file's norm weights have too much."""

    class_name: str
    rotates_pairs: bool = False
    qkv_bias: bool | None = False
    has_head_norms: bool = False
    norm_offset: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", rotates_pairs=True, qkv_bias=None, options={"hidden_act": "silu"}),
    "qwen2": Architecture("Qwen2ForCausalLM", qkv_bias=True, options={"hidden_act": "silu"}),
    "qwen3": Architecture("Qwen3ForCausalLM", has_head_norms=True, options={"hidden_act": "silu"}),
    "gemma": Architecture(
        "GemmaForCausalLM",
        norm_offset=1.0,
        options={"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """What a tensor of the file is to transformers. heads: the rows of each hold rotary pairs in GGUF's order."""

    name: str
    shape: tuple[int, ...]
    heads: int | None = None
    offset: float = 0.0


def architecture_of(reader: Reader) -> Architecture:
    """Raises UnsupportedFile."""
    name = reader.value("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedFile(f"the GGUF file's architecture is {name}; those that can be served are {known}")
    if reader.value_or(f"{name}.expert_count", 0):
        raise UnsupportedFile(f"the GGUF file is a mixture of experts ({name}), which is not supported")
    return ARCHITECTURES[name]


def config_of(reader: Reader) -> Config:
    """config.json without its special ids. Raises UnsupportedFile."""
    architecture, name = architecture_of(reader), reader.value("general.architecture")
    heads = _whole(reader, "attention.head_count")
    hidden = _whole(reader, "embedding_length")
    has_bias = reader.tensor("blk.0.attn_q.bias") is not None
    biases = {"attention_bias": has_bias, "mlp_bias": reader.tensor("blk.0.ffn_up.bias") is not None}
    return {
        "architectures": [architecture.class_name],
        "model_type": name,
        "dtype": "bfloat16",
        "vocab_size": _vocab_size(reader),
        "hidden_size": hidden,
        "intermediate_size": _whole(reader, "feed_forward_length"),
        "num_hidden_layers": _whole(reader, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(reader, "attention.head_count_kv", heads),
        "head_dim": _head_dim(reader, hidden // max(heads, 1)),
        **architecture.options,
        "max_position_embeddings": _whole(reader, "context_length"),
        # GGUF keeps float32, whose shortest form is the number the model was trained with (1e-05).
        "rms_norm_eps": float(str(np.float32(reader.value(f"{name}.attention.layer_norm_rms_epsilon")))),
        "rope_parameters": _rope(reader),
        **({} if architecture.qkv_bias else biases),
        "tie_word_embeddings": reader.tensor("output.weight") is None,
    }


def places(reader: Reader, config: Config) -> dict[str, Place]:
    """Every tensor there must be, by its name in the file."""
    architecture = architecture_of(reader)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    found = {
        "token_embd.weight": Place("model.embed_tokens.weight", (vocab, hidden)),
        "output_norm.weight": Place("model.norm.weight", (hidden,), offset=-architecture.norm_offset),
    }
    if not config["tie_word_embeddings"]:
        found["output.weight"] = Place("lm_head.weight", (vocab, hidden))
    layer = _layer(config, architecture)
    for index in range(config["num_hidden_layers"]):
        for part, place in layer.items():
            found[f"blk.{index}.{part}"] = Place(
                f"model.layers.{index}.{place.name}", place.shape, place.heads, place.offset
            )
    return found


def _layer(config: Config, architecture: Architecture) -> dict[str, Place]:
    """The tensors of one layer."""
    hidden, middle, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    paired = (heads, kv_heads) if architecture.rotates_pairs else (None, None)
    offset = -architecture.norm_offset
    parts = {
        "attn_norm": Place("input_layernorm", (hidden,), offset=offset),
        "attn_q": Place("self_attn.q_proj", (heads * head_dim, hidden), paired[0]),
        "attn_k": Place("self_attn.k_proj", (kv_heads * head_dim, hidden), paired[1]),
        "attn_v": Place("self_attn.v_proj", (kv_heads * head_dim, hidden)),
        "attn_output": Place("self_attn.o_proj", (hidden, heads * head_dim)),
        "ffn_norm": Place("post_attention_layernorm", (hidden,), offset=offset),
        "ffn_gate": Place("mlp.gate_proj", (middle, hidden)),
        "ffn_up": Place("mlp.up_proj", (middle, hidden)),
        "ffn_down": Place("mlp.down_proj", (hidden, middle)),
    }
    if architecture.has_head_norms:
        parts["attn_q_norm"] = Place("self_attn.q_norm", (head_dim,))
        parts["attn_k_norm"] = Place("self_attn.k_norm", (head_dim,))
    weights = {f"{part}.weight": Place(f"{p.name}.weight", p.shape, p.heads, p.offset) for part, p in parts.items()}
    biases = {
        f"{part}.bias": Place(f"{parts[part].name}.bias", parts[part].shape[:1], parts[part].heads)
        for part in _biased(config, architecture)
    }
    return weights | biases


def _biased(config: Config, architecture: Architecture) -> tuple[str, ...]:
    if architecture.qkv_bias:
        return ("attn_q", "attn_k", "attn_v")
    attention = ("attn_q", "attn_k", "attn_v", "attn_output") if config["attention_bias"] else ()
    return (*attention, *(("ffn_gate", "ffn_up", "ffn_down") if config["mlp_bias"] else ()))


def _whole(reader: Reader, key: str, default: int | None = None) -> int:
    """A number of the architecture's own. Raises UnsupportedFile where it is none, or one for each layer."""
    full = f"{reader.value('general.architecture')}.{key}"
    found = reader.value(full) if default is None else reader.value_or(full, default)
    if not isinstance(found, int) or found < 1:
        raise UnsupportedFile(f"the GGUF file's {full} is not one positive number")
    return found


def _vocab_size(reader: Reader) -> int:
    embedding = reader.tensor("token_embd.weight")
    if embedding is None:
        raise UnsupportedFile("the GGUF file lacks the tensor token_embd.weight")
    return int(embedding.shape[-1])


def _head_dim(reader: Reader, usual: int) -> int:
    rotary = _whole(reader, "rope.dimension_count", _whole(reader, "attention.key_length", usual))
    head_dim = _whole(reader, "attention.key_length", rotary)
    if rotary != head_dim or _whole(reader, "attention.value_length", head_dim) != head_dim:
        raise UnsupportedFile("the GGUF file rotates only part of each head, or has values of another width")
    return head_dim


def _rope(reader: Reader) -> Config:
    """transformers' rope_parameters. Raises UnsupportedFile for a scaling that they cannot say."""
    prefix = f"{reader.value('general.architecture')}.rope"
    base = reader.value_or(f"{prefix}.freq_base", 10000.0)
    kind = reader.value_or(f"{prefix}.scaling.type", "none")
    factor = reader.value_or(f"{prefix}.scaling.factor", reader.value_or(f"{prefix}.scale_linear", 1.0))
    divisors = reader.tensor("rope_freqs.weight")
    if divisors is not None:
        return {"rope_theta": base, **_llama3(np.asarray(divisors.data, np.float64).flatten(), base)}
    if kind == "none" or factor == 1.0:
        return {"rope_theta": base, "rope_type": "default"}
    if kind == "linear":
        return {"rope_theta": base, "rope_type": "linear", "factor": factor}
    shaped = [key for key in reader.fields if key.startswith((f"{prefix}.scaling.yarn_", f"{prefix}.scaling.attn_"))]
    if kind != "yarn" or shaped:
        raise UnsupportedFile(f"the GGUF file scales rotary frequencies in a way that is not supported ({kind})")
    original = reader.value(f"{prefix}.scaling.original_context_length")
    return {
        "rope_theta": base,
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }


def _llama3(divisors: np.ndarray, base: float) -> Config:  # [head_dim / 2]
    """Llama 3's parameters, if the file's divisors of the frequencies are what they give. Raises UnsupportedFile."""
    factor = round(float(divisors.max()), 4)
    low, high, original = LLAMA3_ROPE.values()
    turns = original * base ** (-np.arange(len(divisors)) / len(divisors)) / (2 * math.pi)  # over the original length
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    if not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise UnsupportedFile("the GGUF file divides rotary frequencies (rope_freqs) in another way than Llama 3 does")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
