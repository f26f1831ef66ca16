"""Steps that exclude or shift single ids: allowed_token_ids, logit_bias, bad_words, min_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from decoding.logits.context import Context
from decoding.logits.history import NO_IDS, History
from decoding.logits.step import EXCLUDED, exclude, flat_index, shift


@dataclass(frozen=True, slots=True, eq=False)
class AllowedTokens:
    """Everything but these ids is excluded."""

    ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[AllowedTokens], context: Context) -> torch.Tensor:
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
    def apply(scores: torch.Tensor, steps: Sequence[LogitBias], context: Context) -> torch.Tensor:
        return shift(scores, [s.ids for s in steps], [s.bias for s in steps])


@dataclass(slots=True, eq=False)
class Endings:
    """Last ids of words. ids: of those that nothing more stands before; after: of the others, by the id before that."""

    ids: list[int] = field(default_factory=list)
    after: dict[int, Endings] = field(default_factory=dict)

    def add(self, word: Sequence[int]) -> None:
        node = self
        for token_id in reversed(word[:-1]):
            node = node.after.setdefault(token_id, Endings())
        node.ids.append(word[-1])


@dataclass(frozen=True, slots=True, eq=False)
class BadWords:
    """The last id of a bad word is excluded where the history ends with the ids before it.

    As Hugging Face: a single EOS is no bad word, and a word longer than the history is not looked for.
    """

    endings: Endings

    @classmethod
    def of(cls, words: Sequence[tuple[int, ...]], eos_token_ids: Sequence[int]) -> BadWords:
        endings = Endings()
        for word in words:
            if len(word) > 1 or word[0] not in eos_token_ids:
                endings.add(word)
        return cls(endings)

    @property
    def is_empty(self) -> bool:
        return not self.endings.ids and not self.endings.after

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[BadWords], context: Context) -> torch.Tensor:
        return exclude(scores, [s._banned(h) for s, h in zip(steps, context.histories, strict=True)])

    def _banned(self, history: History) -> np.ndarray:
        """Goes back from the end of the history only as far as some word does."""
        node, banned = self.endings, list(self.endings.ids)
        for token_id in history.ids[:0:-1]:
            following = node.after.get(int(token_id))
            if following is None:
                break
            node = following
            banned += node.ids
        return np.asarray(banned, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class MinTokens:
    """Ending ids stay excluded until `count` output tokens are out (as vLLM's min_tokens: EOS and stop_token_ids)."""

    count: int
    ending_ids: np.ndarray  # int64 [n]

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[MinTokens], context: Context) -> torch.Tensor:
        rows = zip(steps, context.histories, strict=True)
        return exclude(scores, [s.ending_ids if h.num_output < s.count else NO_IDS for s, h in rows])
