"""Models of real shapes with random weights: for speed the shape is all that counts, and nothing is downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config


def _llama_8b() -> PreTrainedConfig:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    return LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_parameters=rope,
        tie_word_embeddings=False,
    )  # fmt: skip


def _qwen3_06b() -> PreTrainedConfig:
    return Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    )  # fmt: skip


def _tiny() -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.25, tie_word_embeddings=False,
    )  # fmt: skip


def _peaked() -> PreTrainedConfig:
    """For answers rather than speed: scores that lie far apart, heads of a width that kernels pad."""
    return LlamaConfig(
        vocab_size=97, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, max_position_embeddings=4096, initializer_range=0.25,
        tie_word_embeddings=False,
    )  # fmt: skip


def _wide() -> PreTrainedConfig:
    """Small weights and large activations: what needs memory is the prefill."""
    return LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=16384, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama-3.1-8b": _llama_8b,
    "qwen3-0.6b": _qwen3_06b,
    "tiny": _tiny,
    "peaked": _peaked,
    "wide": _wide,
}


@functools.cache
def num_parameters(shape: str) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape]())  # type: ignore[no-untyped-call]
    return sum(weight.numel() for weight in model.parameters())


def cache_bytes_per_token(shape: str, dtype: torch.dtype) -> int:
    """Of keys and values, over all layers."""
    return _cache_numbers(SHAPES[shape]()) * dtype.itemsize


def _cache_numbers(config: Any) -> int:
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config))


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def build(shape: str, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> Any:
    """The shape's model with seeded random weights, made where it will run."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype)  # type: ignore[no-untyped-call]
    return model.to(device).eval()


@dataclass(frozen=True, slots=True)
class Work:
    """What a model must do at the least: bytes of weights that a step reads, parameters that a token multiplies by.

    head_parameters: those of the output matrix, which only positions that are read go through. attention_width: query
    heads times their size, of all layers.
    """

    weight_bytes: int
    body_parameters: int
    head_parameters: int
    kv_bytes_per_token: int
    attention_width: int


def work_of(model: Any) -> Work:
    """Of a model as transformers made it."""
    config = model.config
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    total = sum(p.numel() for p in model.parameters())  # a tied matrix counts once
    is_tied = head is embedding
    body = total - embedding.numel() - (0 if is_tied else head.numel())
    size = head.element_size()
    width = config.num_hidden_layers * config.num_attention_heads * _head_dim(config)
    return Work((body + head.numel()) * size, body, head.numel(), _cache_numbers(config) * size, width)
