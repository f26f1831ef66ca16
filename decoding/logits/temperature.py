"""Temperatures: the static z / T, and two that choose T anew at each position.

A static T below 1e-5 is greedy and never gets here; where a chosen one falls below, all but the best id is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.contract.params import LogitsParams
from decoding.logits.context import Context
from decoding.logits.entropy import entropy_of
from decoding.logits.history import History
from decoding.logits.lines import needs_first_word
from decoding.logits.step import EXCLUDED, column, log_softmax, row_exp, softmax

_LEAST_ENTROPY = 1e-5


@dataclass(frozen=True, slots=True)
class Temperature:
    value: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Temperature], context: Context) -> torch.Tensor:
        return scores.div_(column([s.value for s in steps], scores))


@dataclass(frozen=True, slots=True)
class EntropyTemperature:
    """EDT (Zhang et al. 2024, arXiv 2403.14541): T = T0 * N ** (theta / H).

    H is the entropy of the raw scores, in nats; a sure model (small H) gets a low T.
    """

    t0: float
    theta: float
    n: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[EntropyTemperature], context: Context) -> torch.Tensor:
        raw = context.raw
        h = entropy_of(softmax(raw), log_softmax(raw))  # [rows, 1]
        theta_log_n = column([s.theta * math.log(s.n) for s in steps], scores)
        t = column([s.t0 for s in steps], scores) * row_exp(theta_log_n / h.clamp(min=_LEAST_ENTROPY))
        is_spread = (h >= _LEAST_ENTROPY) & (t >= LogitsParams.GREEDY_BELOW)  # false where H is NaN: no id is left
        return _divide(scores, t, ~is_spread)


@dataclass(frozen=True, slots=True, eq=False)
class LineTemperature:
    """AdapT (Zhu et al. 2024, AAAI): `hot` for the first word of an indented code line, `cold` elsewhere.

    The prompt counts, as in the authors' loop: one that ends with a newline opens a line. first_token: whether the
    output's first token is hot wherever it stands.
    """

    hot: float
    cold: float
    first_token: bool
    token_lines: np.ndarray  # int8 [known ids], see lines.py

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[LineTemperature], context: Context) -> torch.Tensor:
        values = [s._choose(h) for s, h in zip(steps, context.histories, strict=True)]
        t = column(values, scores)
        if min(values) < LogitsParams.GREEDY_BELOW:
            return _divide(scores, t, t < LogitsParams.GREEDY_BELOW)
        return scores.div_(t)

    def _choose(self, history: History) -> float:
        is_called = self.first_token and not history.num_output
        return self.hot if is_called or needs_first_word(history.ids, self.token_lines) else self.cold


def _divide(scores: torch.Tensor, t: torch.Tensor, is_greedy: torch.Tensor) -> torch.Tensor:
    """scores [rows, vocab] / t [rows, 1]; of the rows that are greedy only the best id stays."""
    is_best = torch.arange(scores.shape[-1], device=scores.device) == scores.argmax(dim=-1, keepdim=True)
    return scores.div_(t.masked_fill(is_greedy, 1.0)).masked_fill_(is_greedy & ~is_best, EXCLUDED)
