"""The beam family. Every class: `n` best hypotheses are returned out of `num_beams`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.invalid import check, check_finite

EarlyStopping = bool | Literal["never"]
LengthPenaltyType = Literal["hf", "gnmt"]


def _check_beams(n: int, num_beams: int) -> None:
    check(n >= 1, "n", "must be at least 1")
    check(num_beams >= 1, "num_beams", "must be at least 1")
    check(n <= num_beams, "n", "must not exceed num_beams")


@dataclass(frozen=True, slots=True)
class Beam:
    """Beam search with Hugging Face's finish semantics (decoding-methods 2.3).

    length_penalty: sum / length ** alpha ("hf"), or sum / ((5 + length) / 6) ** alpha ("gnmt", arXiv 1609.08144).
    coverage_penalty: GNMT's beta over the last layer's attention to the prompt; 0 is off.
    prune: drop running beams whose score lies more than this below the best finished one; None is off.
    """

    NAME: ClassVar[str] = "beam"

    n: int = 1
    num_beams: int = 4
    length_penalty: float = 1.0
    length_penalty_type: LengthPenaltyType = "hf"
    coverage_penalty: float = 0.0
    early_stopping: EarlyStopping = False
    prune: float | None = None

    def __post_init__(self) -> None:
        _check_beams(self.n, self.num_beams)
        check_finite(self.length_penalty, "length_penalty", low=-10, high=10)
        check_finite(self.coverage_penalty, "coverage_penalty", low=0, high=100)
        check(self.prune is None or self.prune >= 0, "beam_prune", "must not be negative")

    @property
    def max_rows(self) -> int:
        return self.num_beams


@dataclass(frozen=True, slots=True)
class BeamSample:
    """Beam search whose candidates are drawn without replacement (Hugging Face's do_sample with num_beams)."""

    NAME: ClassVar[str] = "beam_sample"

    n: int = 1
    num_beams: int = 4
    length_penalty: float = 1.0
    length_penalty_type: LengthPenaltyType = "hf"
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        _check_beams(self.n, self.num_beams)
        check_finite(self.length_penalty, "length_penalty", low=-10, high=10)

    @property
    def max_rows(self) -> int:
        return self.num_beams


@dataclass(frozen=True, slots=True)
class GroupBeam:
    """Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424): groups avoid each other's tokens of the step."""

    NAME: ClassVar[str] = "group_beam"

    n: int = 1
    num_beams: int = 4
    num_beam_groups: int = 2
    diversity_penalty: float = 0.5
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        _check_beams(self.n, self.num_beams)
        check(self.num_beam_groups >= 1, "num_beam_groups", "must be at least 1")
        check(self.num_beams % self.num_beam_groups == 0, "num_beam_groups", "must divide num_beams")
        check_finite(self.diversity_penalty, "diversity_penalty", low=0)
        check_finite(self.length_penalty, "length_penalty", low=-10, high=10)

    @property
    def max_rows(self) -> int:
        return self.num_beams


@dataclass(frozen=True, slots=True)
class BestFirst:
    """Best-first beam search (Meister et al. 2020, arXiv 2007.03909): beam search's result with fewer model calls."""

    NAME: ClassVar[str] = "best_first"

    n: int = 1
    num_beams: int = 4
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check_beams(self.n, self.num_beams)
        check_finite(self.length_penalty, "length_penalty", low=-10, high=10)

    @property
    def max_rows(self) -> int:
        """Popped nodes that lazy children still hang on are held; the strategy never holds more than this."""
        return 2 * self.num_beams
