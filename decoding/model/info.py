"""What a loaded model says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ModelInfo:
    vocab_size: int  # the width of the logits
    max_model_len: int  # positions, prompt and output together
    eos_token_ids: tuple[int, ...]
    hidden_size: int  # of the states that the output matrix reads
    num_layers: int
    ties_embeddings: bool  # the output matrix is the embedding
    dtype: torch.dtype
    device: torch.device
    architecture: str
    reads_layers: bool = True  # the states between layers are as wide as those that the output matrix reads
    has_head: bool = True  # there is an output matrix of its own
    dtype_reason: str = ""  # why it was loaded in that


def describe(lm: Any, widths: tuple[int, int], num_layers: int, max_model_len: int) -> ModelInfo:
    """widths: of the states that the output matrix reads, and of the logits."""
    from decoding.model.checkpoint import has_head  # noqa: PLC0415 - needs transformers

    hidden_size, vocab_size = widths
    config = lm.config.get_text_config(decoder=True)
    return ModelInfo(
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=eos_token_ids(lm),
        hidden_size=hidden_size,
        num_layers=num_layers,
        ties_embeddings=bool(config.tie_word_embeddings),
        dtype=lm.dtype,
        device=lm.device,
        architecture=type(lm).__name__,
        reads_layers=hidden_size == config.hidden_size,
        has_head=has_head(lm),
    )


def eos_token_ids(lm: PreTrainedModel) -> tuple[int, ...]:
    """Those of the configuration and of the generation configuration, in that order."""
    found: list[int] = []
    for config in (lm.config, lm.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))
