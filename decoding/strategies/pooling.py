"""Embeddings: a prompt's last hidden states h_1 … h_T become one vector e, and nothing is generated.

1. mean: e = (h_1 + … + h_T) / T; last: e = h_T. Pause tokens are not among them.
2. e / |e| is the answer.

The prompt is fed CHUNK tokens a step and only the running sum is kept, so that no prompt fills the host with its hidden
states. Terms are added one after the other in double precision: the sum does not depend on how the steps were run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from decoding.contract.params import Pooling, Request, StrategyParams
from decoding.seam import NOTHING, Feed, Move, Observation, Open, RowId, Tools, Want
from decoding.stopping import Stopping

CHUNK = 256
HIDDEN = Want(hidden=True)


class PoolingStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Pooling

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Pooling)
        self._is_mean = request.strategy.pool_by == "mean"
        self._prompt_ids = request.prompt_ids
        self._num_fed = 0
        self._sum: torch.Tensor | None = None  # [hidden] float64

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move(feeds=(self._feed(Open()),))

    def step(self, seen: Observation) -> Move:
        (row,) = seen.rows
        for reading in row.readings:
            if reading.hidden is not None:
                h = reading.hidden.double()
                self._sum = h if self._sum is None else self._sum + h
        if self._num_fed < len(self._prompt_ids):
            return Move(feeds=(self._feed(row.row),))
        return Move(vector=self._unit())

    def _feed(self, parent: RowId | Open) -> Feed:
        """The prompt's next tokens; all that are left where only the last of them is read."""
        start = self._num_fed
        end = start + CHUNK if self._is_mean else len(self._prompt_ids)
        tokens = self._prompt_ids[start:end]
        self._num_fed += len(tokens)
        return Feed(parent, tokens, want=HIDDEN, inner=HIDDEN if self._is_mean else NOTHING)

    def _unit(self) -> tuple[float, ...]:
        assert self._sum is not None
        return tuple(torch.nn.functional.normalize(self._sum, dim=0).float().tolist())  # the divisor T cancels
