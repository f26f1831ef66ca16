"""Classifier-free guidance (Sanchez et al. 2023, arXiv 2306.17806) with a negative prompt.

    logp = gamma * (log p(. | c, y_<t) - log p(. | u, y_<t)) + log p(. | u, y_<t)
    the request's pipeline on logp; pick y_t; both contexts read it

gamma = 1 is plain decoding. The guided scores are not normalised before the pipeline (as in Hugging Face).

A token whose probability is 0 in c is excluded, except for gamma = 0, where u alone counts. One whose probability is 0
in u alone has the score log p(. | c, y_<t) for gamma >= 1, and is excluded otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from decoding.contract.params import Guided, Request, StrategyParams
from decoding.logits.step import EXCLUDED
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_context
from decoding.strategies.parts.report import whole_logits


class GuidedStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = Guided

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Guided)
        others = [in_context(request, request.strategy.negative_ids)]
        super().__init__(request, stopping, tools, others=others, kind="guidance")
        self._gamma = request.strategy.scale

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        logp_c, logp_u = (whole_logits(row.last).log_softmax(dim=-1) for row in (c, *others))
        trace = {"scale": self._gamma, "unguided_token": int(logp_c.argmax()), "negative_token": int(logp_u.argmax())}
        return self._verdict(c, guided(logp_c, logp_u, self._gamma), trace)


def guided(logp_c: torch.Tensor, logp_u: torch.Tensor, gamma: float) -> torch.Tensor:
    """Both log-probs float32 [vocab], -inf where a token has no chance; never NaN or +inf."""
    if gamma == 0:
        return logp_u
    scores = gamma * (logp_c - logp_u) + logp_u
    scores = torch.where(logp_u.isneginf(), logp_c if gamma >= 1 else EXCLUDED, scores)
    return torch.where(logp_c.isneginf(), EXCLUDED, scores)
