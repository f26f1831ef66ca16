"""What to report beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from decoding.contract.params.invalid import check

LogprobsMode = Literal["raw", "processed"]


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """What to report beside the tokens. None: nothing; 0: the token's own log-prob; k: the k best as well.

    raw: log-softmax of the model's logits; processed: after penalties, temperature and filters.
    `prompt` scores the prompt's tokens (the first has no score).
    """

    output: int | None = None
    prompt: int | None = None
    mode: LogprobsMode = "raw"

    def __post_init__(self) -> None:
        check(self.output is None or self.output >= 0, "logprobs", "must not be negative")
        check(self.prompt is None or self.prompt >= 0, "prompt_logprobs", "must not be negative")
