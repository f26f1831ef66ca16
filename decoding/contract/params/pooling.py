"""A prompt as one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

PoolBy = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """The prompt's last hidden states, averaged over its tokens or of its last token alone, scaled to length 1."""

    NAME: ClassVar[str] = "pooling"

    pool_by: PoolBy = "mean"

    @property
    def n(self) -> int:
        return 1

    @property
    def max_rows(self) -> int:
        return 1
