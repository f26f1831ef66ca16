"""The engine's services to a strategy (`seam.Tools`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding import sampling
from decoding.contract.params import LogitsParams
from decoding.engine.request import LiveRequest
from decoding.logits import pipeline
from decoding.logits.context import Context
from decoding.logits.history import History
from decoding.logits.pipeline import Pipelines
from decoding.sampling import uniforms
from decoding.seam import Draw, RowId


class RowTools:
    """seam.Tools for one live request."""

    def __init__(self, live: LiveRequest, pipelines: Pipelines) -> None:
        self._live = live
        self._pipelines = pipelines

    def uniform(self, draw: Draw, position: int, count: int = 1) -> list[float]:
        seeds, choices, positions = ([key] * count for key in (self._live.request.seed, draw.choice, position))
        numbers: list[float] = uniforms(seeds, choices, positions, [draw.purpose] * count, np.arange(count)).tolist()
        return numbers

    def uniforms(self, draw: Draw, positions: Sequence[int]) -> list[float]:
        count = len(positions)
        seeds, choices, purposes = [self._live.request.seed] * count, [draw.choice] * count, [draw.purpose] * count
        return [float(u) for u in uniforms(seeds, choices, positions, purposes)]

    def process(
        self,
        row: RowId,
        hypothetical: Sequence[int],
        scores: torch.Tensor,
        *,
        logits: LogitsParams | None = None,
        warps: bool = True,
    ) -> torch.Tensor:
        live = self._live
        log = live.rows[row]
        ids = log.log.history(log.log.length)
        history = History(ids, log.num_prompt, log.log.repeats).extended(list(hypothetical))
        own = live.pipeline if logits is None else self._pipelines.build(logits, live.request.stopping)
        context = Context([history], scores.unsqueeze(0))
        processed = pipeline.process(scores.unsqueeze(0).clone(), [own], context)
        return (pipeline.warp(processed, [own], context) if warps else processed).squeeze(0)

    def draw(self, scores: torch.Tensor, draw: Draw, position: int, lane: int = 0) -> int:
        number = uniforms([self._live.request.seed], [draw.choice], [position], [draw.purpose], lane)
        return int(sampling.draw(scores.unsqueeze(0), torch.from_numpy(number).to(scores.device)))

    def text_bytes(self, token_ids: Sequence[int]) -> bytes:
        table = self._pipelines.token_bytes
        return b"".join(table[i] for i in token_ids if i < len(table))
