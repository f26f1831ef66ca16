"""Contrastive search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.base import StrategyParams
from decoding.contract.params.declared import MAX_INT, PROBABILITY, Named, Off, Says, Within


@dataclass(frozen=True, slots=True)
class Contrastive(StrategyParams):
    """Contrastive search: of the k likeliest tokens the one that repeats least."""

    NAME = "contrastive"

    # fmt: off
    penalty_alpha: Annotated[
        float, PROBABILITY, Off(0),
        Says("Contrastive search's weight of the similarity; 0 is greedy decoding, unless do_sample is true."),
    ]
    k: Annotated[int, Within(1, MAX_INT), Named("top_k")]
    # fmt: on

    @property
    def max_rows(self) -> int:
        return self.k

    @property
    def feeds_last(self) -> bool:
        return True
