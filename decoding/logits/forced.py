"""Steps that leave one choice: the first token of encoder-decoder models, and an EOS where the length ends the text.

As Hugging Face's: what is forced scores 0 and all else is excluded, whatever was excluded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.context import Context
from decoding.logits.step import EXCLUDED


@dataclass(frozen=True, slots=True)
class ForcedBos:
    """After the one token that the decoder starts with; a longer prompt holds its first token already."""

    token_id: int

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[ForcedBos], context: Context) -> torch.Tensor:
        for row, (step, history) in enumerate(zip(steps, context.histories, strict=True)):
            if len(history.ids) == 1:
                scores[row] = EXCLUDED
                scores[row, step.token_id] = 0.0
        return scores


@dataclass(frozen=True, slots=True, eq=False)
class ForcedEos:
    """The last of `max_tokens` output tokens."""

    token_ids: np.ndarray  # int64 [n]
    max_tokens: int

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[ForcedEos], context: Context) -> torch.Tensor:
        for row, (step, history) in enumerate(zip(steps, context.histories, strict=True)):
            if history.num_output == step.max_tokens - 1:
                scores[row] = EXCLUDED
                scores[row, torch.from_numpy(step.token_ids).to(scores.device)] = 0.0
        return scores
