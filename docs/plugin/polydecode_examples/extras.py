"""A token-level step and a judge, as small as they can be.

Top-a keeps tokens with p >= a * p_max ** 2: few where the model is sure, many where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from decoding.plugin import Candidate, Judge, Plugin, PluginStep, Says, Within

if TYPE_CHECKING:
    import torch

    from decoding.plugin.words import Context


@dataclass(frozen=True, slots=True)
class Filter:
    """What acts on scores; one class, so that the rows of all requests that ask for it are done at once."""

    a: float

    @staticmethod
    def apply(scores: torch.Tensor, steps: Sequence[Filter], context: Context) -> torch.Tensor:
        from decoding.plugin.words import EXCLUDED, column

        p = scores.softmax(dim=-1)  # [rows, vocab], row by row
        least = column([step.a for step in steps], scores) * p.amax(dim=-1, keepdim=True).square()
        return scores.masked_fill_(p < least, EXCLUDED)


@dataclass(frozen=True, slots=True)
class TopA(PluginStep):
    """Only tokens whose probability is not far below the square of the highest one."""

    NAME = "top_a"
    KIND = "filter"
    PURPOSE = "Few tokens where the model is sure, many where it is not."

    a: Annotated[float, Within(0, 1), Says("The factor before the square of the highest probability; 0 keeps all.")]

    def step(self, eos_token_ids: Sequence[int], token_bytes: Sequence[bytes]) -> Filter:
        return Filter(self.a)


class Shortest(Judge):
    NAME = "shortest"
    PURPOSE = "The shortest text first."

    def scores(self, prompt: bytes, candidates: Sequence[Candidate]) -> Sequence[float]:
        return [-float(len(candidate.text)) for candidate in candidates]


PLUGIN = Plugin("extras", "1.0", steps=(TopA,), judges=(Shortest(),))
