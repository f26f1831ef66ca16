"""Beam sample: beam search whose candidates are drawn (transformers' `_beam_search` with do_sample).

    draw M of all y . v without replacement from softmax(s(y) + log p(v | y)), p after the warpers
    go on as beam search does with its M best, in the order drawn: only the first K drawn may finish

Where fewer than M continuations have a probability above 0, there are fewer candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

import numpy as np

from decoding.contract.params import BeamSample, Request, StrategyParams
from decoding.logits.step import EXCLUDED
from decoding.sampling import draw_many_without_replacement, draw_without_replacement
from decoding.seam import Draw, Purpose, Reading, Scores, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies.beam import BeamStrategy
from decoding.strategies.parts.hypotheses import Path
from decoding.strategies.parts.search import MOST_LISTED, Extension

NOISE = Draw(0, Purpose.BEAM_GUMBEL)


class BeamSampleStrategy(BeamStrategy):
    PARAMS: ClassVar[type[StrategyParams]] = BeamSample

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        super().__init__(request, stopping, tools)
        self._tools = tools

    def _wanted(self) -> Want:
        return dataclasses.replace(self._report.want(scores=Scores.WARPED), full=True)

    def _continued(self, readings: Sequence[Reading]) -> tuple[list[Extension], list[Extension]]:
        """Of the M drawn those that end among the first K, and the K best that go on."""
        num_beams, drawn = self._params.num_beams, self._draw(readings)
        first = [(beam, self._drawn(beam, readings[beam], token_id)) for _, beam, token_id in drawn[:num_beams]]
        ranked = sorted((c for c in drawn if not self._surely_ends(c[2])), key=lambda c: -c[0])
        paths = ((beam, self._drawn(beam, readings[beam], token_id)) for _, beam, token_id in ranked)
        going_on = islice((c for c in paths if c[1].finish is None), num_beams)
        return [c for c in first if c[1].finish is not None], list(going_on)

    def _draw(self, readings: Sequence[Reading]) -> list[tuple[float, int, int]]:
        """(score of the path, beam, token id) in the order drawn."""
        totals = np.stack([_full(r) + np.float32(b.score) for b, r in zip(self._beams, readings, strict=True)])
        flat = totals.ravel()  # float32 [K * vocab]
        possible = np.flatnonzero(flat > EXCLUDED)
        if not len(possible):
            return []
        weights, position = np.exp(flat[possible] - flat.max()), readings[0].position
        if self._num_candidates > MOST_LISTED:
            (key,) = self._tools.uniform(NOISE, position)
            drawn = draw_many_without_replacement(weights, self._num_candidates, key)
        else:
            uniforms = self._tools.uniform(NOISE, position, self._num_candidates)
            drawn = draw_without_replacement(weights, uniforms)
        chosen = [divmod(int(possible[i]), totals.shape[1]) for i in drawn]
        full = [_full(reading) for reading in readings]
        return [(self._beams[beam].score + float(full[beam][i]), beam, i) for beam, i in chosen]

    def _drawn(self, beam: int, reading: Reading, token_id: int) -> Path:
        score = float(_full(reading)[token_id])
        parent = self._beams[beam]
        return self._path(parent, self._report.full(reading, token_id, score), parent.score + score)


def _full(reading: Reading) -> np.ndarray:
    assert reading.full is not None
    scores: np.ndarray = reading.full.numpy()
    return scores
