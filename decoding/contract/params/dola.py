"""DoLa: contrasting the last layer with an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.invalid import check


@dataclass(frozen=True, slots=True)
class Dola:
    """DoLa (Chuang et al. 2023, arXiv 2309.03883). layers: hidden-state indices that may be the premature layer.

    relative_top: ids less likely than this fraction of the likeliest are left out.
    """

    NAME: ClassVar[str] = "dola"

    layers: tuple[int, ...]
    n: int = 1
    relative_top: float = 0.1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check(0 < self.relative_top <= 1, "dola_relative_top", "must lie in (0, 1]")
        check(bool(self.layers), "dola_layers", "must name at least one layer")
        check(min(self.layers) >= 0, "dola_layers", "must not be negative")

    @property
    def max_rows(self) -> int:
        return self.n


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
