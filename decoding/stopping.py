"""When a row ends: EOS, stop ids, stop sequences over token bytes, length. No text here: bytes come from a table.

A stop sequence is looked for in the bytes of the output alone, so it ends every strategy's rows in the same tick in
which its last byte was drawn, and nothing is computed beyond it. These are the bytes that the answer shows; a stop that
names a special token is looked for in those with the hidden ones, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from decoding.contract.params import StoppingParams
from decoding.contract.params.stopping import StopSequence
from decoding.seam import Finish, FinishReason


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a row is: output tokens so far, and the last bytes that a stop sequence may have begun in.

    whole_tail: the same of all bytes, those of hidden tokens too.
    """

    num_tokens: int = 0
    tail: bytes = b""
    whole_tail: bytes = b""


START = Progress()


_Stops = Sequence[tuple[int, bytes]]  # each with its place among the request's


class Stopping:
    """One request's rules; the state lives in Progress, so that forked rows share nothing.

    special: the names of the special tokens, whose entries in token_bytes are empty.
    """

    def __init__(
        self,
        params: StoppingParams,
        eos_token_ids: Sequence[int],
        token_bytes: Sequence[bytes] = (),
        special: Mapping[int, bytes] | None = None,
    ) -> None:
        self.max_tokens = params.max_tokens
        self._min_tokens = params.min_tokens
        self.pad_id = eos_token_ids[0] if eos_token_ids else None
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._token_bytes = token_bytes
        self._special = special or {}
        self._shown = self._special if params.shows_special else _at(self._special, params.shown_ids)
        self._stops = tuple(enumerate(params.stop))
        hidden = () if params.shows_special else params.named_stops
        self._named_stops = tuple((i, params.stop[i]) for i in hidden)
        self._tail_length = max((len(stop) for stop in params.stop), default=1) - 1

    @property
    def ending_ids(self) -> frozenset[int]:
        """Token ids that end a row."""
        return self._eos | self._stop_ids

    def push(self, progress: Progress, token: int) -> tuple[Progress, Finish | None]:
        """The row after one more output token, and whether that ended it. Ids win over sequences, these over length."""
        num_tokens = progress.num_tokens + 1
        found, tail = self._look(self._stops, self._shown, progress.tail, token)
        named, whole_tail = self._look(self._named_stops, self._special, progress.whole_tail, token)
        found = (found if found is not None else named) if num_tokens >= self._min_tokens else None
        after = Progress(num_tokens, tail, whole_tail)
        if token in self._eos:
            return after, Finish(FinishReason.STOP)
        if token in self._stop_ids:
            return after, Finish(FinishReason.STOP, token)
        if found is not None:
            return after, Finish(FinishReason.STOP, StopSequence(found))
        if num_tokens >= self.max_tokens:
            return after, Finish(FinishReason.LENGTH)
        return after, None

    def _look(self, stops: _Stops, special: Mapping[int, bytes], tail: bytes, token: int) -> tuple[int | None, bytes]:
        """The stop that the token completes, and the bytes to look on in."""
        if not stops:
            return None, b""
        window = tail + (special.get(token) or self._bytes_of(token))
        return _find(stops, window, len(tail)), window[-self._tail_length :] if self._tail_length else b""

    def _bytes_of(self, token: int) -> bytes:
        return self._token_bytes[token] if token < len(self._token_bytes) else b""


def _at(special: Mapping[int, bytes], ids: Iterable[int]) -> dict[int, bytes]:
    return {token_id: special[token_id] for token_id in ids if token_id in special}


def _find(stops: _Stops, window: bytes, num_old: int) -> int | None:
    """Index of the stop sequence that ends first behind the window's old bytes; the earlier listed among equals.

    One among the old bytes came before min_tokens were out, and ends nothing.
    """
    starts = [(i, stop, window.find(stop, max(num_old - len(stop) + 1, 0))) for i, stop in stops]
    ends = [(at + len(stop), i) for i, stop, at in starts if at >= 0]
    return min(ends)[1] if ends else None
