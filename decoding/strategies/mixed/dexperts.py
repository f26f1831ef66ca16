"""DExperts (Liu et al. 2021, arXiv 2105.03023) and, with alpha = 1, proxy tuning (Liu et al. 2024, arXiv 2401.08565).

    y_t ~ softmax(z + alpha (z+ - z-))
    z: the main model's logits; z+: the expert's; z-: the anti-expert's

Proxy tuning steers a large model by what tuning did to a small one: z+ is the small one tuned, z- as it was. The
request's pipeline acts on the sum. (The authors of DExperts filter z before.) A token that z or z+ gives no chance has
none; where z- alone gives it none, z- counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import Dexperts, Request, StrategyParams
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_model, less
from decoding.strategies.parts.report import whole_logits


class DexpertsStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = Dexperts

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Dexperts)
        models = (request.strategy.expert, request.strategy.anti_expert)
        others = [in_model(request, name) for name in models]
        super().__init__(request, stopping, tools, others=others, kind="experts")
        self._alpha = request.strategy.alpha

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        z, expert, anti_expert = (whole_logits(row.last) for row in (c, *others))
        best = [int(each.argmax()) for each in (z, expert, anti_expert)]
        trace = dict(zip(("main_token", "expert_token", "anti_expert_token"), best, strict=True))
        if self._alpha == 0:
            return self._verdict(c, z, trace)
        return self._verdict(c, less(z + self._alpha * expert, anti_expert, self._alpha), trace)
