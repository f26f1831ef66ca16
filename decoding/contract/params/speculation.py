"""Speculation: tokens proposed cheaply, verified in one forward. The output distribution is that of plain decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from decoding.contract.params.base import DRAFT, Choices, StrategyParams
from decoding.contract.params.declared import PROBABILITY, Named, Off, Says, Within

Schedule = Literal["constant", "heuristic"]


@dataclass(frozen=True, slots=True)
class PromptLookup(StrategyParams):
    """Prompt lookup: propose what followed an earlier occurrence of the last n-gram."""

    NAME = "prompt_lookup"

    # fmt: off
    num_tokens: Annotated[
        int, Within(1, 128), Off(0), Named("prompt_lookup_num_tokens"),
        Says("Most tokens proposed from the text so far; 0 is off."),
    ] = 10
    max_ngram: Annotated[
        int, Within(1, 64), Named("max_matching_ngram_size"), Says("Longest n-gram looked up."),
    ] = 2
    n: Choices = 1
    # fmt: on


@dataclass(frozen=True, slots=True)
class Assisted(StrategyParams):
    """Speculative decoding with the server's draft model."""

    NAME = "assisted"

    # fmt: off
    num_tokens: Annotated[
        int, Within(1, 128), Off(0), Named("num_assistant_tokens"),
        Says("Tokens drafted a round; asks for speculation too. 0 is off."),
    ] = 5
    schedule: Annotated[
        Schedule, Named("num_assistant_tokens_schedule"),
        Says("heuristic: two more after a round in which all were accepted, else one fewer."),
    ] = "constant"
    confidence_threshold: Annotated[
        float, PROBABILITY, Named("assistant_confidence_threshold"),
        Says("Drafting ends behind a token with a lower draft probability; 0 is off."),
    ] = 0.4
    n: Choices = 1
    # fmt: on

    @property
    def beside(self) -> tuple[str, ...]:
        return (DRAFT,)
