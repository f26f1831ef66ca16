"""Tiny random models of many architectures: peaked logits, small vocabularies, windows shorter than the sequences."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 97
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.25, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WHOLE_GROUPS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
}  # widths that all formats of weights can have
ROPE = {"rope_theta": 10000.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-llama3-rope": {
        "model_type": "llama",
        "rope_parameters": ROPE | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    },
    "llama-yarn-rope": {
        "model_type": "llama",
        "rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 11},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 10, "attn_logit_softcapping": 5.0,
               "final_logit_softcapping": 7.0, "query_pre_attn_scalar": 20},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 10, "query_pre_attn_scalar": 20,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {"model_type": "phi3", "sliding_window": 12},
    "gpt2": {"model_type": "gpt2"},
    "gpt_neox": {"model_type": "gpt_neox"},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 1, 0]},
    "granite": {"model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7,
                "attention_multiplier": 0.3},
    "gpt_oss": {"model_type": "gpt_oss", "head_dim": 16, "sliding_window": 8, "num_local_experts": 4,
                "num_experts_per_tok": 2},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def tiny(name: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A fresh float32 model; `wrap` takes it over, so ask for another to compare with."""
    torch.manual_seed(seed)
    options = COMMON | CONFIGS[name] | overrides
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()
