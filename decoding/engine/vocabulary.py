"""What the engine knows of the token ids: which end a text, and what each stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from decoding.contract.params import StoppingParams
from decoding.logits.pipeline import Pipelines
from decoding.stopping import Stopping


@dataclass(frozen=True)
class Vocabulary:
    """token_bytes: by token id; empty where only ids are known. special_tokens: ids and names."""

    eos_token_ids: Sequence[int]
    token_bytes: Sequence[bytes] = ()
    special_tokens: Sequence[tuple[int, str]] = ()

    def pipelines(self) -> Pipelines:
        return Pipelines(self.eos_token_ids, self.token_bytes, self.special_tokens)

    def stopping(self, params: StoppingParams) -> Stopping:
        return Stopping(params, self.eos_token_ids, self.token_bytes, self._special_names)

    @cached_property
    def _special_names(self) -> dict[int, bytes]:
        return {token_id: name.encode() for token_id, name in self.special_tokens}
