"""When a row ends: EOS, stop ids, stop sequences over token bytes, length. No text here: bytes come from a table.

A stop sequence is looked for in the bytes of the output alone, so it ends every strategy's rows in the same tick in
which its last byte was drawn, and nothing is computed beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.params import StoppingParams
from decoding.seam import Finish, FinishReason


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a row is: output tokens so far, and the last bytes that a stop sequence may have begun in."""

    num_tokens: int = 0
    tail: bytes = b""


START = Progress()


class Stopping:
    """One request's rules; the state lives in Progress, so that forked rows share nothing."""

    def __init__(self, params: StoppingParams, eos_token_ids: Sequence[int], token_bytes: Sequence[bytes] = ()) -> None:
        self.max_tokens = params.max_tokens
        self._min_tokens = params.min_tokens
        self.pad_id = eos_token_ids[0] if eos_token_ids else None
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._stops = params.stop
        self._token_bytes = token_bytes
        self._tail_length = max((len(s) for s in params.stop), default=1) - 1

    @property
    def ending_ids(self) -> frozenset[int]:
        """Token ids that end a row."""
        return self._eos | self._stop_ids

    def push(self, progress: Progress, token: int) -> tuple[Progress, Finish | None]:
        """The row after one more output token, and whether that ended it. Ids win over sequences, these over length."""
        num_tokens = progress.num_tokens + 1
        found: int | None = None
        tail = b""
        if self._stops:
            window = progress.tail + self._bytes_of(token)
            found = self._find(window, len(progress.tail)) if num_tokens >= self._min_tokens else None
            tail = window[-self._tail_length :] if self._tail_length else b""
        after = Progress(num_tokens, tail)
        if token in self._eos:
            return after, Finish(FinishReason.STOP)
        if token in self._stop_ids:
            return after, Finish(FinishReason.STOP, token)
        if found is not None:
            return after, Finish(FinishReason.STOP, f"stop:{found}")
        if num_tokens >= self.max_tokens:
            return after, Finish(FinishReason.LENGTH)
        return after, None

    def _bytes_of(self, token: int) -> bytes:
        return self._token_bytes[token] if token < len(self._token_bytes) else b""

    def _find(self, window: bytes, num_old: int) -> int | None:
        """Index of the stop sequence that ends first behind the window's old bytes; the earlier listed among equals.

        One among the old bytes came before min_tokens were out, and ends nothing.
        """
        starts = [window.find(stop, max(num_old - len(stop) + 1, 0)) for stop in self._stops]
        ends = [(at + len(stop), i) for i, (at, stop) in enumerate(zip(starts, self._stops, strict=True)) if at >= 0]
        return min(ends)[1] if ends else None
