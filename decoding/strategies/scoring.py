"""max_tokens = 0, for every strategy: nothing is generated; the prompt may still be scored (echo with log-probs)."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.contract.params import Request
from decoding.seam import Emit, Feed, Finish, FinishReason, Move, Observation, Open, Reading, Tools
from decoding.stopping import Stopping
from decoding.strategies.parts.prompt import inner_want, prompt_scores


class ScoringStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        self._request = request

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        inner = inner_want(self._request)
        if inner.is_empty or len(prompt_ids) == 1:
            return self._over(())
        return Move(feeds=(Feed(Open(), tuple(prompt_ids), inner=inner),))

    def step(self, seen: Observation) -> Move:
        return self._over(seen.rows[0].readings)

    def _over(self, readings: Sequence[Reading]) -> Move:
        """Every choice is empty."""
        over = Finish(FinishReason.LENGTH)
        emits = tuple(Emit(i, (), (), (), finish=over) for i in range(self._request.strategy.n))
        return Move(emit=emits, prompt=prompt_scores(self._request, readings))
