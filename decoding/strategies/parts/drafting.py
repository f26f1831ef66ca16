"""Speculation's arithmetic: what to propose, how much of it, and what of it stays.

Pure: no model, no rows. Drafts come from earlier occurrences in a text (`Ngrams`) or from a draft model, whose tokens
rejection sampling keeps or replaces (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from decoding.contract.params import Schedule
from decoding.logits.repeats import Repeats

WIDEST_GROWN = 31
"""A growing schedule stops here: a window of 32 tokens still runs beside decode steps, a wider one waits as prefill."""


class Ngrams:
    """A text's ids so far, and what followed the earlier occurrences of its end."""

    def __init__(self, ids: Sequence[int], max_ngram: int) -> None:
        self._max_ngram = max_ngram
        self._ids = np.empty(0, dtype=np.int64)
        self._length = 0
        self._repeats = Repeats()
        self.extend(ids)
        self._repeats.at(self._ids[: self._length])

    def fork(self) -> Ngrams:
        """The same text, to go on in another way."""
        twin = copy(self)
        twin._ids = self._ids[: self._length].copy()
        twin._repeats = self._repeats.fork()
        return twin

    def extend(self, ids: Sequence[int]) -> None:
        end = self._length + len(ids)
        if end > len(self._ids):
            grown = np.empty(2 * end, dtype=np.int64)
            grown[: self._length] = self._ids[: self._length]
            self._ids = grown
        self._ids[self._length : end] = ids
        self._length = end

    def propose(self, num_tokens: int, ending_ids: Collection[int]) -> tuple[int, ...]:
        """Up to `num_tokens` ids that followed the first occurrence of the longest repeated n-gram at the end, cut
        before the first ending id."""
        ids = self._ids[: self._length]
        start = self._continuation(ids)
        if start is None:
            return ()
        proposed = tuple(ids[start : start + num_tokens].tolist())
        ends = [at for at, token in enumerate(proposed) if token in ending_ids]
        return proposed[: ends[0]] if ends else proposed

    def _continuation(self, ids: np.ndarray) -> int | None:
        """Behind the first earlier occurrence of the text's last n ids, for the largest n that has one."""
        lengths = np.minimum(self._repeats.at(ids), min(self._max_ngram, len(ids)))
        if not lengths.any():
            return None
        return int(lengths.argmax()) + 1


@dataclass(frozen=True, slots=True)
class DraftLength:
    """How many tokens to draft in a round (Hugging Face's schedules)."""

    num_tokens: int
    schedule: Schedule

    def after(self, num_drafted: int, num_accepted: int) -> DraftLength:
        """heuristic: two more after a round in which all were accepted, else one fewer."""
        if self.schedule == "constant":
            return self
        if num_accepted < num_drafted:
            return DraftLength(max(1, self.num_tokens - 1), self.schedule)
        return DraftLength(max(self.num_tokens, min(self.num_tokens + 2, WIDEST_GROWN)), self.schedule)


def num_matching(drafts: Sequence[int], drawn: Sequence[int | None]) -> int:
    """Drafts up to the first that differs from what was drawn in its place (None: nothing could be)."""
    pairs = zip(drafts, drawn, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), len(drafts))


def num_accepted(log_p: Sequence[float], log_q: Sequence[float], u: Sequence[float]) -> int:
    """Drafts x_1 … x_g up to the first with u_i >= min(1, p(x_i) / q(x_i)): rejection sampling's test."""
    ratios = (1.0 if p >= q else math.exp(p - q) for p, q in zip(log_p, log_q, strict=True))
    return next((i for i, (ratio, number) in enumerate(zip(ratios, u, strict=True)) if number >= ratio), len(log_p))


def residual(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Log of max(p - q, 0), not normalised: what a rejected draft is replaced by. All [vocab] float32.

    Where p = q nothing is left, but then no draft is rejected. If rounding leads here all the same, it is p.
    """
    left = (log_p.exp() - log_q.exp()).clamp_(min=0).log_()
    return torch.where(left.isfinite().any(), left, log_p)
