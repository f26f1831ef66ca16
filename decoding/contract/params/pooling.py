"""A prompt as one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decoding.contract.params.base import StrategyParams

PoolBy = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Pooling(StrategyParams):
    """The prompt's last hidden states, averaged over its tokens or of its last token alone, scaled to length 1."""

    NAME = "pooling"

    pool_by: PoolBy = "mean"
