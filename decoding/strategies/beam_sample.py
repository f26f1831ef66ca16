"""Beam sample: beam search whose candidates are drawn (transformers' `_beam_search` with do_sample).

    draw M of all y . v without replacement from softmax(s(y) + log p(v | y)), p after the warpers
    go on as beam search does with its M best, in the order drawn: only the first K drawn may finish

Each draw inverts the distribution function of what the draws before left over. Where fewer than M continuations have
a chance at all, there are fewer candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from decoding.logits.step import EXCLUDED
from decoding.params import Request
from decoding.sampling import draw_without_replacement
from decoding.seam import Draw, Purpose, Reading, Scores, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies.beam import BeamStrategy
from decoding.strategies.hypotheses import Path
from decoding.strategies.search import Extension, reported, search_want

NOISE = Draw(0, Purpose.BEAM_GUMBEL)


class BeamSampleStrategy(BeamStrategy):
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        super().__init__(request, stopping, tools)
        self._tools = tools

    def _wanted(self, request: Request) -> Want:
        return dataclasses.replace(search_want(request, 0, Scores.WARPED), full=True)

    def _candidates(self, readings: Sequence[Reading]) -> list[Extension]:
        totals = np.stack([_full(r) + np.float32(b.score) for b, r in zip(self._beams, readings, strict=True)])
        flat = totals.ravel()  # float32 [K * vocab]
        possible = np.flatnonzero(flat > EXCLUDED)
        if not len(possible):
            return []
        uniforms = self._tools.uniform(NOISE, readings[0].position, self._num_candidates)
        drawn = draw_without_replacement(np.exp(flat[possible] - flat.max()), uniforms)
        chosen = [divmod(int(possible[i]), totals.shape[1]) for i in drawn]
        return [(beam, self._drawn(beam, readings[beam], token_id)) for beam, token_id in chosen]

    def _drawn(self, beam: int, reading: Reading, token_id: int) -> Path:
        score = float(_full(reading)[token_id])
        raw = 0.0 if reading.full_logprobs is None else float(reading.full_logprobs[token_id])
        parent = self._beams[beam]
        return self._path(parent, reported(self._request, reading, token_id, score, raw), parent.score + score)


def _full(reading: Reading) -> np.ndarray:
    assert reading.full is not None
    scores: np.ndarray = reading.full.numpy()
    return scores
