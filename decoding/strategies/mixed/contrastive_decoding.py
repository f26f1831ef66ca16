"""Contrastive decoding with an amateur model (Li et al. 2022, arXiv 2210.15097; O'Brien & Lewis 2023, 2309.09117).

    V_head = {x: p_EXP(x) >= alpha max_w p_EXP(w)}; all other tokens are excluded
    F(x) = log p_EXP(x) - log p_AMA(x), the amateur at temperature tau
    F(x) = (1 + beta) s_EXP(x) - beta s_AMA(x) where beta is given; s are logits, here normalised, which shifts F alone
    the request's pipeline on F; pick x_t; both models read it

EXP is the main model. (The first paper searches with beams over F.) Where the request's masks exclude all of V_head,
the maximum is over what they leave. A token to which the amateur gives no chance has what EXP alone gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from decoding.contract.params import ContrastiveDecoding, Request, StrategyParams
from decoding.logits.contrast import near_the_best
from decoding.logits.step import EXCLUDED
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_model, less
from decoding.strategies.parts.report import is_possible, whole_logits


class ContrastiveDecodingStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = ContrastiveDecoding

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, ContrastiveDecoding)
        self._params = request.strategy
        others = [in_model(request, self._params.amateur)]
        super().__init__(request, stopping, tools, others=others, kind="contrast")

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        alpha, beta, tau = self._params.alpha, self._params.beta, self._params.tau
        expert = whole_logits(c.last).log_softmax(dim=-1)
        amateur = (whole_logits(others[0].last) / tau).log_softmax(dim=-1)
        f = less(expert, amateur, 1.0) if beta is None else less((1 + beta) * expert, amateur, beta)
        v_head = near_the_best(expert, alpha)
        trace = {"num_plausible": int(v_head.sum()), "expert_token": int(expert.argmax())}
        verdict = self._verdict(c, f.masked_fill(~v_head, EXCLUDED), trace)
        if is_possible(verdict.scores):
            return verdict
        is_left = self._tools.process(c.row, (), torch.zeros_like(f), warps=False) > EXCLUDED
        v_head = near_the_best(expert.masked_fill(~is_left, EXCLUDED), alpha)
        return self._verdict(c, f.masked_fill(~v_head, EXCLUDED), trace)
