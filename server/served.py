"""What the loaded model is to the HTTP side: names, sizes, tokenizer. The batcher fills it once the worker is ready."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.params import PoolBy
from server.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """Valid token ids are below vocab_size, the width of the logits. created: Unix seconds. names[0] is the default.

    num_layers is 0 where it is not known; ties_embeddings, has_draft: as in `frames.Loaded`.
    pool_by: how embeddings are made.
    """

    names: tuple[str, ...]
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    created: int
    tokenizer: Tokenizer
    architecture: str
    num_layers: int = 0
    ties_embeddings: bool = False
    has_draft: bool = False
    pool_by: PoolBy = "mean"
