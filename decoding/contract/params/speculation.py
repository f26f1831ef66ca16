"""Speculation: tokens proposed cheaply, verified in one forward. The output distribution is that of plain decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from decoding.contract.params.invalid import check

Schedule = Literal["constant", "heuristic"]


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Prompt lookup (Saxena 2023): propose what followed an earlier occurrence of the last n-gram."""

    NAME: ClassVar[str] = "prompt_lookup"

    num_tokens: int = 10
    max_ngram: int = 2
    n: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check(self.num_tokens >= 1, "prompt_lookup_num_tokens", "must be at least 1")
        check(self.max_ngram >= 1, "max_matching_ngram_size", "must be at least 1")

    @property
    def max_rows(self) -> int:
        return self.n


@dataclass(frozen=True, slots=True)
class Assisted:
    """Speculative decoding with the server's draft model (Leviathan et al. 2022, arXiv 2211.17192; Chen et al. 2023).

    schedule heuristic: two more after a round in which all were accepted, else one fewer.
    confidence_threshold: drafting ends after a token with a lower draft probability; 0 is off.
    """

    NAME: ClassVar[str] = "assisted"

    num_tokens: int = 5
    schedule: Schedule = "constant"
    confidence_threshold: float = 0.4
    n: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check(self.num_tokens >= 1, "num_assistant_tokens", "must be at least 1")
        check(0 <= self.confidence_threshold <= 1, "assistant_confidence_threshold", "must lie in [0, 1]")

    @property
    def max_rows(self) -> int:
        """Each choice has a row in the draft model as well."""
        return 2 * self.n
