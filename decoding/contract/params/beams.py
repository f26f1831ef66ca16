"""The beam family. Every class: `n` best hypotheses are returned out of `num_beams`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import MAX_INT, Named, Off, Says, Within
from decoding.contract.params.invalid import check

EarlyStopping = bool | Literal["never"]
LengthPenaltyType = Literal["hf", "gnmt"]

# fmt: off
_NumBeams = Annotated[
    int, Within(1, MAX_INT), Off(1), Says("Beams; 1 is greedy decoding, unless do_sample is true."),
]
_LengthPenalty = Annotated[
    float, Within(-10, 10), Off(1),
    Says("Exponent of the length by which a hypothesis' log-prob is divided; GNMT's authors take 0.2."),
]
_LengthPenaltyType = Annotated[LengthPenaltyType, Off("hf"), Says("length, or (5 + length) / 6.")]
_EarlyStopping = Annotated[
    EarlyStopping, Off(False),
    Says("true: at num_beams finished; false: when improvement is unlikely; never: when it is impossible."),
]
# fmt: on


class _Beams(StrategyParams):
    __slots__ = ()

    num_beams: int

    def _check(self) -> None:
        check(self.n <= self.num_beams, "n", "must not exceed num_beams")

    @property
    def max_rows(self) -> int:
        return self.num_beams


@dataclass(frozen=True, slots=True)
class Beam(_Beams):
    """Beam search with Hugging Face's finish semantics (decoding-methods 2.3)."""

    NAME = "beam"

    n: Choices = 1
    num_beams: _NumBeams = 4
    length_penalty: _LengthPenalty = 1.0
    length_penalty_type: _LengthPenaltyType = "hf"
    # fmt: off
    coverage_penalty: Annotated[
        float, Within(0, 100), Off(0), Says("GNMT's beta, over the attention to the prompt; 0 is off."),
    ] = 0.0
    early_stopping: _EarlyStopping = False
    prune: Annotated[
        float | None, Within(0, 1e6), Named("beam_prune"),
        Says("Drop beams whose score lies more than this below the best finished one (a difference of scores, which "
             "are logarithms: no factor); default: never."),
    ] = None
    # fmt: on


@dataclass(frozen=True, slots=True)
class BeamSample(_Beams):
    """Beam search whose candidates are drawn without replacement (Hugging Face's do_sample with num_beams)."""

    NAME = "beam_sample"

    n: Choices = 1
    num_beams: _NumBeams = 4
    length_penalty: _LengthPenalty = 1.0
    length_penalty_type: _LengthPenaltyType = "hf"
    early_stopping: _EarlyStopping = False


@dataclass(frozen=True, slots=True)
class GroupBeam(_Beams):
    """Diverse beam search: groups avoid each other's tokens of the step."""

    NAME = "group_beam"

    n: Choices = 1
    num_beams: _NumBeams = 4
    # fmt: off
    num_beam_groups: Annotated[
        int, Within(1, MAX_INT), Off(1), Says("Groups that avoid each other's tokens; 1 is off."),
    ] = 2
    diversity_penalty: Annotated[
        float, Within(0, 1000), Off(0),
        Says("Taken from a token's score for each earlier group that has it in this step."),
    ] = 0.5
    # fmt: on
    length_penalty: _LengthPenalty = 1.0
    early_stopping: _EarlyStopping = False

    def _check(self) -> None:
        _Beams._check(self)
        check(self.num_beams % self.num_beam_groups == 0, "num_beam_groups", "must divide num_beams")


@dataclass(frozen=True, slots=True)
class BestFirst(_Beams):
    """Best-first beam search: beam search's result with fewer model calls."""

    NAME = "best_first"

    n: Choices = 1
    num_beams: _NumBeams = 4
    length_penalty: _LengthPenalty = 0.0

    @property
    def max_rows(self) -> int:
        """Popped nodes that lazy children still hang on are held; the strategy never holds more than this."""
        return 2 * self.num_beams
