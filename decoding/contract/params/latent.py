"""Thoughts without words, between prompt and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from decoding.contract.params.declared import Says, TokenId, Within, check_declared


@dataclass(frozen=True, slots=True)
class LatentThoughts:
    """Coconut (Hao et al. 2024, arXiv 2412.06769)."""

    WITHIN: ClassVar[str] = "latent_thoughts"

    count: Annotated[int, Within(1, 4096), Says("How many thoughts.")]
    start_id: Annotated[TokenId, Says("The token before them.")]
    end_id: Annotated[TokenId, Says("The token behind them.")]

    def __post_init__(self) -> None:
        check_declared(self)

    @property
    def num_positions(self) -> int:
        return self.count + 2
