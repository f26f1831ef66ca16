"""Which models can be served, found out before anything is served.

Owns the refusals by configuration and by class; `agreement.py` refuses by what comes out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHANGING_ROPES = frozenset({"dynamic", "longrope"})
"""Kinds of rotary positions whose frequencies depend on the longest sequence of a forward."""

LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class UnsupportedModel(Exception):
    """The model cannot be served; says which one and why."""

    def __init__(self, architecture: str, reason: str) -> None:
        super().__init__(f"{architecture} cannot be served: it {reason}")
        self.architecture = architecture
        self.reason = reason


@contextmanager
def trials(architecture: str) -> Iterator[None]:
    """Whatever a model's code raises while it is tried out is a reason not to serve it; want of memory, or that it
    cannot be quantised, is not, and goes on as it is."""
    from decoding.model.quantize import QuantizeUnsupported  # noqa: PLC0415 - needs transformers

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
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 - who only names a refusal must not wait for it
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    from decoding.model.seq2seq.stack import BART_TYPES, T5_TYPES  # noqa: PLC0415

    architecture = architecture_of(config)
    if config.is_encoder_decoder:
        if config.model_type not in T5_TYPES | BART_TYPES:
            raise UnsupportedModel(architecture, "is an encoder-decoder model of an unknown family")
        return
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(architecture, "is no causal language model known to transformers")
    types = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if types - LAYER_TYPES:
        raise UnsupportedModel(architecture, f"has layers of type {', '.join(sorted(types - LAYER_TYPES))}")


def check_class(lm: Any) -> None:
    """Refuse classes without a pluggable attention, or with state besides keys and values."""
    if lm.config.is_encoder_decoder:  # those have layers of ours
        return
    architecture = type(lm).__name__
    if getattr(lm, "_is_stateful", False):
        raise UnsupportedModel(architecture, "keeps recurrent state, which pages cannot hold")
    if not getattr(lm, "_supports_attention_backend", False):
        raise UnsupportedModel(architecture, "supports no other attention than its own")
    if lm.get_output_embeddings() is None:
        raise UnsupportedModel(architecture, "has no output embeddings")
    for module in lm.modules():
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
        if parameters.get("rope_type") in CHANGING_ROPES:
            limit = min(limit, int(parameters.get("original_max_position_embeddings") or limit))
    return limit


def hold_frequencies(causal_lm: PreTrainedModel) -> None:
    """Rotate by the frequencies that the model was loaded with, without looking each time whether they must change.

    Up to `position_limit` they never must; and what looks at positions on a GPU cannot be recorded.
    """
    for module in causal_lm.modules():
        types = getattr(module, "rope_type", None)
        types = types.values() if isinstance(types, dict) else [types]
        if any(each in CHANGING_ROPES for each in types):
            plain = inspect.unwrap(type(module).forward)
            module.forward = MethodType(plain, module)
