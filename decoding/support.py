"""Which models can be served, found out before anything is served.

Owns the refusals: by configuration, by class, and by comparing a short forward over our attention with the model's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decoding.attention.interface import AttentionBackend, Batch

LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
TRIAL_TOKENS = 24
# Per token, relative to the norm of the model's own hidden state.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

ROUNDED_TOLERANCE = 0.02  # where each product rounds its inputs


class UnsupportedModel(Exception):
    """The model cannot be served; says which one and why."""

    def __init__(self, architecture: str, reason: str) -> None:
        super().__init__(f"{architecture} cannot be served: it {reason}")
        self.architecture = architecture
        self.reason = reason


def check_config(config: Any) -> None:
    """Refuse what the configuration alone gives away, before weights are read."""
    architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(architecture, "is an encoder-decoder model")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(architecture, "is no causal language model known to transformers")
    types = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if types - LAYER_TYPES:
        raise UnsupportedModel(architecture, f"has layers of type {', '.join(sorted(types - LAYER_TYPES))}")


def check_class(causal_lm: Any) -> None:
    """Refuse classes without a pluggable attention, or with state besides keys and values."""
    architecture = type(causal_lm).__name__
    if getattr(causal_lm, "_is_stateful", False):
        raise UnsupportedModel(architecture, "keeps recurrent state, which pages cannot hold")
    if not getattr(causal_lm, "_supports_attention_backend", False):
        raise UnsupportedModel(architecture, "supports no other attention than its own")
    if causal_lm.get_output_embeddings() is None:
        raise UnsupportedModel(architecture, "has no output embeddings")
    for module in causal_lm.modules():
        if hasattr(module, "kv_a_proj_with_mqa"):
            raise UnsupportedModel(architecture, "caches latent attention states instead of keys and values")


def position_limit(causal_lm: PreTrainedModel) -> int:
    """How many positions a row may have.

    Dynamic-NTK and LongRoPE change every frequency once the longest sequence of a forward outgrows the pretraining
    length, so a row would depend on its neighbours; up to that length they do not, and that is the limit here.
    """
    config = causal_lm.config.get_text_config(decoder=True)
    limit = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            limit = min(limit, int(parameters.get("original_max_position_embeddings") or limit))
    return limit


class Agreement:
    """Holds the hidden states a model gives of its own, to compare with what it gives over our attention.

    Guards against what no flag tells: biases that live in a model's mask, state between layers, a window unknown to us.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, rounds_inputs: bool = False) -> None:
        config = causal_lm.config.get_text_config(decoder=True)
        self._architecture = type(causal_lm).__name__
        self._dtype = causal_lm.dtype
        self._tolerance = ROUNDED_TOLERANCE if rounds_inputs else TOLERANCE[self._dtype]
        self._is_exact = self._dtype == torch.float32 and not rounds_inputs
        self._ids = torch.arange(3, 3 + TRIAL_TOKENS, device=causal_lm.device)[None] % config.vocab_size
        # Of transformers' own implementations the eager one leaves nothing out; sdpa has ignored soft caps.
        causal_lm.set_attn_implementation("eager")
        self._expected = causal_lm.base_model(input_ids=self._ids, use_cache=False).last_hidden_state[0].float()

    def check(self, forward: Callable[[Batch], torch.Tensor], attention: AttentionBackend) -> None:
        """Raise UnsupportedModel unless `forward` gives the same; leaves the backend without pages."""
        attention.allocate(2 + TRIAL_TOKENS // attention.page_size)
        found = forward(_trial(self._ids[0].cpu().numpy(), attention.page_size)).float()
        attention.allocate(0)
        error = (found - self._expected).norm(dim=-1) / self._expected.norm(dim=-1).clamp_min(1e-6)
        # In half precision a mixture's router may flip for a token or two, and a token that few others look at may
        # magnify what rounding takes from it; in float32 nothing may differ.
        worst = float(error.max() if self._is_exact else error.median())
        if not worst < self._tolerance:
            reason = f"disagrees with itself over paged attention (error {worst:.3g})"
            raise UnsupportedModel(self._architecture, reason)


def _trial(ids: np.ndarray, page_size: int) -> Batch:  # int64 [T]
    positions = np.arange(len(ids))
    return Batch(
        token_ids=ids,
        positions=positions,
        slots=positions + page_size,
        query_starts=np.array([0, len(ids)]),
        kv_lengths=np.array([len(ids)]),
        page_tables=np.arange(1, 1 + -(-len(ids) // page_size))[None],
    )
