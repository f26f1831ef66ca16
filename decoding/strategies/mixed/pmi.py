"""Decoding by pointwise mutual information (van der Poel et al. 2022, arXiv 2210.13210): fewer made-up facts.

    score(y) = log p(y | x, y_<t) - lambda log p(y | y_<t)    where H(p(. | x, y_<t)) >= tau
    score(y) = log p(y | x, y_<t)                             elsewhere
    the request's pipeline on the scores; pick y_t; both contexts read it

H is in nats. With tau = 0 the difference counts everywhere, and with lambda = 1 as well it is the mutual information
itself. A token that the other context gives no chance has the score that it has elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from decoding.contract.params import Pmi, Request, StrategyParams
from decoding.logits.step import row_sum
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_context, less
from decoding.strategies.parts.report import whole_logits


class PmiStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = Pmi

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Pmi)
        others = [in_context(request, request.strategy.context_ids)]
        super().__init__(request, stopping, tools, others=others, kind="pmi")
        self._lambda = request.strategy.lam
        self._tau = request.strategy.tau

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        logp_c, logp_u = (whole_logits(row.last).log_softmax(dim=-1) for row in (c, *others))
        entropy = float(row_sum(torch.special.entr(logp_c.softmax(dim=-1)).unsqueeze(0)))
        is_unsure = entropy >= self._tau
        scores = less(logp_c, logp_u, self._lambda) if is_unsure else logp_c
        return self._verdict(c, scores, {"entropy": entropy, "is_unsure": is_unsure})
