"""KL-divergence guided temperature (Chang et al. 2023, arXiv 2306.01286).

    p = softmax(z) with the source in the context, q = softmax(z') without it, both at temperature 1
    D = KL(p || q);  T = T0 * (1/2) ** (D / sigma)
    draw y_t through the request's pipeline at temperature T; both contexts read it

As in the authors' code, probabilities below 1e-7 count as that in D. Where the source matters (large D) the text
follows it closely; where it does not, T0 stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from decoding.contract.params import KlGuided, Request, StrategyParams
from decoding.logits.step import row_sum
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_context
from decoding.strategies.parts.report import whole_logits

LEAST = 1e-7


class KlGuidedStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = KlGuided

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, KlGuided)
        others = [in_context(request, request.strategy.context_ids)]
        super().__init__(request, stopping, tools, others=others, kind="temperature")
        self._sigma = request.strategy.sigma
        self._logits = request.logits

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        z, other = (whole_logits(row.last) for row in (c, *others))
        d = kl_divergence(z, other)
        temperature = self._logits.temperature * 0.5 ** (d / self._sigma)
        logits = dataclasses.replace(self._logits, temperature=temperature)
        scores = self._tools.process(c.row, (), z, logits=logits)
        trace = {"divergence": d, "temperature": temperature}
        return Verdict(scores, logits.is_greedy, trace)


def kl_divergence(logits: torch.Tensor, other: torch.Tensor) -> float:
    """KL(softmax(logits) || softmax(other)) in nats, both [vocab]; never below 0."""
    p, q = (scores.double().softmax(dim=-1).clamp(min=LEAST) for scores in (logits, other))
    return max(float(row_sum((p * (p.log() - q.log())).unsqueeze(0))), 0.0)
