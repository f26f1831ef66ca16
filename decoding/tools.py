"""The engine's services to a strategy (`seam.Tools`), and what stands for a strategy until one is built."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decoding.live import LiveRequest
from decoding.logits import pipeline
from decoding.logits.history import History
from decoding.sampling import uniforms
from decoding.seam import Draw, Move, Observation, RowId


class NotBegun:
    """Stands where a request's strategy will be; never asked for anything."""

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        raise NotImplementedError

    def step(self, seen: Observation) -> Move:
        raise NotImplementedError


class RowTools:
    """seam.Tools for one live request."""

    def __init__(self, live: LiveRequest) -> None:
        self._live = live

    def uniform(self, draw: Draw, position: int, count: int = 1) -> list[float]:
        seed = self._live.request.seed
        return [float(uniforms([seed], [draw.choice], [position], [draw.purpose], lane)[0]) for lane in range(count)]

    def process(self, row: RowId, hypothetical: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        log = self._live.rows[row]
        history = History(log.log.history(log.log.length), log.num_prompt).extended(list(hypothetical))
        batch = scores.unsqueeze(0).clone()
        chain = [self._live.pipeline]
        return pipeline.warp(pipeline.process(batch, chain, [history]), chain, [history]).squeeze(0)
