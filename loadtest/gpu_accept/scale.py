"""How large everything is: as a GPU is measured, or so tiny that a CPU comes to the end in a minute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """shapes: of the models that are timed. rows: that decode at once. prefill, contexts: in positions.

    costs: what the expected seconds of each step are multiplied by. beams: width and requests.
    """

    shapes: tuple[str, ...]
    rows: tuple[int, ...]
    prompt: int
    new: int
    prefill: tuple[int, ...]
    arrivals: int
    context: int
    context_rows: tuple[int, ...]
    beams: tuple[int, int]
    crowd: int
    repeats: int
    costs: float

    @property
    def most_rows(self) -> int:
        return max(*self.rows, self.beams[0] * self.beams[1])


FULL = Scale(
    shapes=("qwen3-0.6b", "llama-3.1-8b"), rows=(1, 8, 64, 256), prompt=128, new=128, prefill=(2048, 8192),
    arrivals=768, context=32768, context_rows=(1, 8), beams=(4, 64), crowd=64, repeats=10, costs=1.0,
)  # fmt: skip
TINY = Scale(
    shapes=("tiny",), rows=(1, 3), prompt=20, new=12, prefill=(40, 80), arrivals=8, context=100, context_rows=(1, 2),
    beams=(2, 2), crowd=16, repeats=2, costs=0.0,
)  # fmt: skip
