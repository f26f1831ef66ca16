"""A product of experts (Hinton 2002, Neural Computation 14): several models, each of which can veto a token.

    y_t ~ softmax(sum_m w_m log p_m(. | x, y_<t)) over the main model and the others

The request's pipeline acts on the sum, which is not normalised before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import Ensemble, Request, StrategyParams
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_model
from decoding.strategies.parts.report import whole_logits


class EnsembleStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = Ensemble

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Ensemble)
        models = request.strategy.models
        super().__init__(request, stopping, tools, others=[in_model(request, m) for m in models], kind="ensemble")
        self._weights = request.strategy.weights or (1 / (1 + len(models)),) * (1 + len(models))

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        logps = [whole_logits(row.last).log_softmax(dim=-1) for row in (c, *others)]
        total = self._weights[0] * logps[0]
        for w, logp in zip(self._weights[1:], logps[1:], strict=True):
            total += w * logp
        return self._verdict(c, total, {"tokens": [int(logp.argmax()) for logp in logps]})
