"""DoLa: contrasting the last layer with an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import FromModel, Named, Says, Within
from decoding.contract.params.invalid import check


@dataclass(frozen=True, slots=True)
class Dola(StrategyParams):
    """layers: hidden-state indices that may be the premature layer."""

    NAME = "dola"

    # fmt: off
    layers: Annotated[tuple[Annotated[int, Within(0)], ...], Named("dola_layers"), FromModel((0,))]
    n: Choices = 1
    relative_top: Annotated[
        float, Within(gt=0, le=1), Named("dola_relative_top"),
        Says("Tokens less likely than this fraction of the likeliest are left out of the contrast."),
    ] = 0.1
    # fmt: on

    def _check(self) -> None:
        check(bool(self.layers), "dola_layers", "must name at least one layer")


def premature_layers(which: Literal["low", "high"], num_layers: int, *, is_tied: bool) -> tuple[int, ...]:
    """The candidates that Hugging Face derives from "low" or "high". is_tied: input and output embeddings are one.

    Empty for "low" of a tied model of three layers: it has none.
    """
    start = 0 if not is_tied else 2 if num_layers > 2 else num_layers - 1
    half = num_layers // 2
    if num_layers > 40:
        return tuple(range(start, 20, 2)) if which == "low" else tuple(range(num_layers - 20, num_layers, 2))
    if which == "high":
        return tuple(range(half, num_layers, 2))
    return (start,) if start == half else tuple(range(start, half, 2))
