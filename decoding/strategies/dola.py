"""DoLa (Chuang et al. 2023, arXiv 2309.03883): what the last layer knows and an earlier one does not yet.

    J = candidate premature layers; M = argmax_{j in J} JSD(p_N, p_j)
    F(x) = log p_N(x) - log p_M(x) where p_N(x) >= relative_top * max p_N, else -inf
    sample (or take the best) from the request's pipeline on F

Holds a SamplingStrategy and has every position that draws read with the contrast (`logits/contrast.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import Dola, Request, Sampling, StrategyParams
from decoding.seam import Feed, Move, Observation, Tools, TraceEvent
from decoding.stopping import Stopping
from decoding.strategies.sampling import SamplingStrategy


class DolaStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Dola

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Dola)
        self._params = request.strategy
        self._is_traced = request.trace
        self._num_steps = 0
        sampling = dataclasses.replace(request, strategy=Sampling(request.strategy.n))
        self._sampling = SamplingStrategy(sampling, stopping, tools)

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return self._contrasted(self._sampling.begin(prompt_ids))

    def step(self, seen: Observation) -> Move:
        move = self._contrasted(self._sampling.step(seen))
        if self._is_traced:
            move = dataclasses.replace(move, trace=self._events(seen, move))
        self._num_steps += 1
        return move

    def _contrasted(self, move: Move) -> Move:
        return dataclasses.replace(move, feeds=tuple(self._contrasting(f) for f in move.feeds))

    def _contrasting(self, feed: Feed) -> Feed:
        params = self._params
        want = dataclasses.replace(feed.want, contrast=params.layers, relative_top=params.relative_top)
        return dataclasses.replace(feed, want=want)

    def _events(self, seen: Observation, move: Move) -> tuple[TraceEvent, ...]:
        """The layer behind each token. Sampling emits one token per row, except that all first ones come of one row."""
        rows = seen.rows * (len(move.emit) // len(seen.rows))
        return tuple(
            TraceEvent(
                self._num_steps,
                "premature_layer",
                {"choice": emit.choice, "token": emit.token_ids[0], "layer": row.last.contrasted},
            )
            for emit, row in zip(move.emit, rows, strict=True)
        )
