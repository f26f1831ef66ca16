"""Which models can be served, found out before anything is served.

Owns the refusals: by configuration, by class, and by comparing a short forward over our attention with the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from decoding.attention.interface import AttentionBackend, Batch
from decoding.model.quantize import QuantizeUnsupported

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


@contextmanager
def trials(architecture: str) -> Iterator[None]:
    """Whatever a model's code raises while it is tried out is a reason not to serve it. Not: no memory, no support."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        is_ours = isinstance(error, torch.OutOfMemoryError | QuantizeUnsupported) or "allocate memory" in str(error)
        if is_ours:
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise UnsupportedModel(architecture, f"fails over paged attention ({type(error).__name__}: {first})") from error


def architecture_of(config: Any) -> str:
    named: str = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    return named


def check_config(config: Any) -> None:
    """Refuse what the configuration alone gives away, before weights are read."""
    architecture = architecture_of(config)
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


class Tried(Protocol):
    """A model of ours, as far as it is compared."""

    @property
    def attention(self) -> AttentionBackend: ...

    def forward(self, batch: Batch, *, shift: int) -> Any:
        """Something whose `last` is the hidden states."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor: ...


class Agreement:
    """Holds what a model gives of its own, to compare with what it gives over our attention: at its first positions and
    at its last ones.

    Guards against what no flag tells: biases that live in a model's mask, state between layers, a window unknown to us,
    a scale that grows with the position, a head that reads more than the last hidden states.
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
        limit = position_limit(causal_lm)
        self._expected = {shift: self._own(causal_lm, shift) for shift in {0, max(0, limit - TRIAL_TOKENS)}}
        self.hidden_size = self._expected[0][0].shape[-1]
        self.vocab_size = self._expected[0][1].shape[-1]

    def check(self, model: Tried) -> None:
        """Raise UnsupportedModel unless `model` gives the same; leaves the backend without pages."""
        attention = model.attention
        attention.allocate(2 + TRIAL_TOKENS // attention.page_size)
        batch = _trial(self._ids[0].cpu().numpy(), attention.page_size)
        for shift, (hidden, logits) in self._expected.items():
            found = model.forward(batch, shift=shift).last
            self._compare(found.float(), hidden)
            self._compare(model.head(found), logits)
        attention.allocate(0)

    def _own(self, causal_lm: Any, shift: int) -> tuple[torch.Tensor, torch.Tensor]:  # [T, hidden], [T, vocab]
        positions = torch.arange(shift, shift + TRIAL_TOKENS, device=causal_lm.device)[None]
        own = {"input_ids": self._ids, "position_ids": positions, "use_cache": False}
        hidden = causal_lm.base_model(**own).last_hidden_state[0].float()
        return hidden, causal_lm(**own).logits[0].float()

    def _compare(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
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
