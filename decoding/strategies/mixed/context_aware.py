"""Context-aware decoding (Shi et al. 2023, arXiv 2305.14739): what the source says outweighs what the model remembers.

    y_t ~ softmax((1 + alpha) logit(y_t | c, x, y_<t) - alpha logit(y_t | x, y_<t))
    c: the source; x: the rest of the prompt

That is classifier-free guidance (`guided.py`) by 1 + alpha away from the prompt without its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import ContextAware, Request, StrategyParams
from decoding.seam import RowView, Tools
from decoding.stopping import Stopping
from decoding.strategies.mixed.guided import guided
from decoding.strategies.parts.lock_step import LockStep, Verdict, in_context
from decoding.strategies.parts.report import whole_logits


class ContextAwareStrategy(LockStep):
    PARAMS: ClassVar[type[StrategyParams]] = ContextAware

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, ContextAware)
        others = [in_context(request, request.strategy.context_ids)]
        super().__init__(request, stopping, tools, others=others, kind="context")
        self._alpha = request.strategy.alpha

    def _judge(self, c: RowView, others: Sequence[RowView]) -> Verdict:
        with_source, without = (whole_logits(row.last).log_softmax(dim=-1) for row in (c, *others))
        trace = {"with_source": int(with_source.argmax()), "without_source": int(without.argmax())}
        return self._verdict(c, guided(with_source, without, 1 + self._alpha), trace)
