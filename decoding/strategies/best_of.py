"""Sample-and-rank (Adiwardana et al. 2020, arXiv 2001.09977; OpenAI's best_of).

    sample N = best_of choices
    return the n with the highest raw log-prob: total (Meena) or per token (OpenAI)

Holds a SamplingStrategy and keeps what it emits until the last choice is over; nothing can be committed before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import BestOf, Request, Sampling, StrategyParams
from decoding.seam import Emit, Finish, Move, Observation, Tools, TraceEvent
from decoding.stopping import Stopping
from decoding.strategies.parts.ranking import Candidate, best
from decoding.strategies.sampling import SamplingStrategy


class BestOfStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = BestOf

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, BestOf)
        self._params = request.strategy
        self._is_traced = request.trace
        self._num_steps = 0
        self._reports_logprobs = request.logprobs.output is not None
        self._emitted: list[list[Emit]] = [[] for _ in range(self._params.best_of)]
        scored = dataclasses.replace(request.logprobs, output=request.logprobs.output or 0)
        sampling = dataclasses.replace(request, strategy=Sampling(self._params.best_of), logprobs=scored)
        self._sampling = SamplingStrategy(sampling, stopping, tools)

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return self._held_back(self._sampling.begin(prompt_ids))

    def step(self, seen: Observation) -> Move:
        return self._held_back(self._sampling.step(seen))

    def _held_back(self, move: Move) -> Move:
        for emit in move.emit:
            self._emitted[emit.choice].append(emit)
        self._num_steps += 1
        if move.feeds:
            return dataclasses.replace(move, emit=())
        candidates = [Candidate(i, self._raw_logprobs(i)) for i in range(self._params.best_of)]
        ranked = best(candidates, self._params.best_of, self._params.rank_by)
        emits = tuple(self._joined(choice, c) for choice, c in enumerate(ranked[: self._params.n]))
        return dataclasses.replace(move, emit=emits, trace=move.trace + self._event(ranked))

    def _event(self, ranked: Sequence[Candidate]) -> tuple[TraceEvent, ...]:
        """All samples, best first; the first n of them are returned."""
        if not self._is_traced:
            return ()
        ranking = [{"sample": c.index, "score": c.score(self._params.rank_by)} for c in ranked]
        return (TraceEvent(self._num_steps - 1, "ranking", {"ranking": ranking}),)

    def _raw_logprobs(self, index: int) -> tuple[float, ...]:
        return tuple(r for e in self._emitted[index] for r in e.raw_logprobs)

    def _joined(self, choice: int, candidate: Candidate) -> Emit:
        """Everything one sampled choice emitted, as one emit of the returned choice."""
        emits = self._emitted[candidate.index]
        last = emits[-1].finish
        assert last is not None
        return Emit(
            choice,
            tuple(t for e in emits for t in e.token_ids),
            tuple(p for e in emits for p in e.logprobs or ()) if self._reports_logprobs else None,
            tuple(t for e in emits for t in e.top or ()) if self._reports_logprobs else None,
            candidate.logprobs,
            Finish(last.reason, last.stop_reason, candidate.score(self._params.rank_by)),
        )
