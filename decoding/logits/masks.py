"""Steps that exclude or shift single ids: allowed_token_ids, logit_bias, min_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.logits.history import History
from decoding.logits.step import EXCLUDED, flat_index


@dataclass(frozen=True, slots=True, eq=False)
class AllowedTokens:
    """Everything but these ids is excluded."""

    ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[AllowedTokens], histories: Sequence[History]) -> torch.Tensor:
        index = flat_index([s.ids for s in steps], scores)
        kept = torch.full_like(scores, EXCLUDED)
        kept[index] = scores[index]
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class LogitBias:
    """OpenAI's logit_bias: added to the scores of distinct ids."""

    ids: np.ndarray  # int64 [n]
    bias: np.ndarray  # float32 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[LogitBias], histories: Sequence[History]) -> torch.Tensor:
        index = flat_index([s.ids for s in steps], scores)
        scores[index] += torch.from_numpy(np.concatenate([s.bias for s in steps])).to(scores.device)
        return scores


@dataclass(frozen=True, slots=True, eq=False)
class MinTokens:
    """Ending ids stay excluded until `count` output tokens are out (as vLLM's min_tokens: EOS and stop_token_ids)."""

    count: int
    ending_ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[MinTokens], histories: Sequence[History]) -> torch.Tensor:
        nothing = np.empty(0, dtype=np.int64)
        banned = [s.ending_ids if h.num_output < s.count else nothing for s, h in zip(steps, histories, strict=True)]
        scores[flat_index(banned, scores)] = EXCLUDED
        return scores
