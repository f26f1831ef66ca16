"""Sample-and-rank (Adiwardana et al. 2020, arXiv 2001.09977; OpenAI's best_of).

    sample N = best_of choices
    return the n with the highest raw log-prob: total (Meena) or per token (OpenAI); or with a judge's highest score

Holds a SamplingStrategy and keeps what it emits until the last choice is over; nothing can be committed before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

from decoding.contract import plugins
from decoding.contract.params import BestOf, Request, Sampling, StrategyParams
from decoding.contract.params.sampling import RANKINGS
from decoding.contract.plugins import Judge
from decoding.seam import Emit, Finish, Move, Observation, Tools, TraceEvent
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import text_ids
from decoding.strategies.parts.ranking import Candidate
from decoding.strategies.parts.report import Token
from decoding.strategies.sampling import SamplingStrategy


class BestOfStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = BestOf

    def __init__(
        self, request: Request, stopping: Stopping, tools: Tools, judges: Mapping[str, Judge] = MappingProxyType({})
    ) -> None:
        assert isinstance(request.strategy, BestOf)
        self._params = request.strategy
        self._prompt_ids = request.prompt_ids
        self._tools = tools
        self._judge = None if self._params.rank_by in RANKINGS else judges[self._params.rank_by]
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
        ranked = sorted(zip(candidates, self._scores(candidates), strict=True), key=lambda c: (-c[1], c[0].index))
        emits = tuple(self._joined(choice, *c) for choice, c in enumerate(ranked[: self._params.n]))
        return dataclasses.replace(move, emit=emits, trace=move.trace + self._event(ranked))

    def _scores(self, candidates: Sequence[Candidate]) -> list[float]:
        if self._judge is None:
            return [c.score("mean" if self._params.rank_by == "mean" else "sum") for c in candidates]
        text = self._tools.text_bytes
        shown = [self._shown_ids(c.index) for c in candidates]
        judged = [plugins.Candidate(ids, c.logprobs, text(ids)) for ids, c in zip(shown, candidates, strict=True)]
        scores = [float(score) for score in self._judge.scores(text(self._prompt_ids), judged)]
        if len(scores) != len(candidates) or not all(map(math.isfinite, scores)):
            raise ValueError(f"judge {self._params.rank_by} must give a finite score for each candidate")
        return scores

    def _shown_ids(self, index: int) -> tuple[int, ...]:
        """Without the id that ended them."""
        emits = self._emitted[index]
        return text_ids([Token(t) for e in emits for t in e.token_ids], emits[-1].finish)

    def _event(self, ranked: Sequence[tuple[Candidate, float]]) -> tuple[TraceEvent, ...]:
        """All samples, best first; the first n of them are returned."""
        if not self._is_traced:
            return ()
        ranking = [{"sample": c.index, "score": score} for c, score in ranked]
        return (TraceEvent(self._num_steps - 1, "ranking", {"ranking": ranking}),)

    def _raw_logprobs(self, index: int) -> tuple[float, ...]:
        return tuple(r for e in self._emitted[index] for r in e.raw_logprobs)

    def _joined(self, choice: int, candidate: Candidate, score: float) -> Emit:
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
            Finish(last.reason, last.stop_reason, score),
        )
