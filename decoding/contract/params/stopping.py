"""When a row ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.declared import TokenId, Within, check_declared
from decoding.contract.params.invalid import check


@dataclass(frozen=True, slots=True)
class StopSequence:
    """The stop sequence that ended a choice: its place among the request's."""

    index: int


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a row ends. `max_tokens` counts output tokens, an ending EOS included.

    stop: byte sequences looked for in the bytes of the output tokens that the answer shows, only once min_tokens are
    out. shows_special: special tokens are shown by their names; where they are not, those of shown_ids are all the
    same. named_stops: which of `stop` hold the name of a special token, and are looked for among hidden ones too.
    min_tokens masks EOS and stop_token_ids until that many tokens are out.
    """

    max_tokens: Annotated[int, Within(0)] = 16
    min_tokens: Annotated[int, Within(0)] = 0
    stop: tuple[bytes, ...] = ()
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    shows_special: bool = False
    shown_ids: tuple[int, ...] = ()
    named_stops: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_declared(self)
        check(self.min_tokens <= self.max_tokens, "min_tokens", "must lie between 0 and max_tokens")
        check(all(self.stop), "stop", "must not hold an empty string")
