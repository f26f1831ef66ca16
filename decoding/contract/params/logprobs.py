"""What to report beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from decoding.contract.params.declared import Named, Within, check_declared

LogprobsMode = Literal["raw", "processed"]


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """What to report beside the tokens. None: nothing; 0: the token's own log-prob; k: the k best as well.

    raw: log-softmax of the model's logits; processed: after penalties, temperature and filters.
    `prompt` scores the prompt's tokens (the first has no score).
    """

    output: Annotated[int | None, Within(0), Named("logprobs")] = None
    prompt: Annotated[int | None, Within(0), Named("prompt_logprobs")] = None
    mode: LogprobsMode = "raw"

    def __post_init__(self) -> None:
        check_declared(self)
