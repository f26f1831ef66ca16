"""When a row ends: EOS, stop ids, stop sequences over token bytes, length. No text here: bytes come from a table.

Stop sequences are looked for here, among the output's bytes, so that a row ends with the very token that completes one
and nothing is computed beyond it. These are the bytes that the answer shows. A stop sequence that names a special token
is also looked for among the bytes with the special tokens that the answer hides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from decoding.contract.params import StoppingParams
from decoding.contract.params.stopping import StopSequence
from decoding.seam import Finish, FinishReason


class Progress(NamedTuple):
    """How far a row is.

    num_tokens: output tokens so far.
    tail: the last bytes that the answer shows, in which a stop sequence may have begun.
    whole_tail: the same with the bytes of hidden special tokens.
    """

    num_tokens: int = 0
    tail: bytes = b""
    whole_tail: bytes = b""


START = Progress()


_Stops = Sequence[tuple[int, bytes]]  # each with its place among the request's


class Stopping:
    """One request's rules. What changes from token to token is in Progress, of which each fork of a row has its own.

    token_bytes: of each id; empty for special tokens.
    special: the names of those.
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
        """The row after one more output token, and how that ended it, if so: by its id before a stop sequence, and by a
        stop sequence before the length.
        """
        num_tokens = progress.num_tokens + 1
        found, after = self._look(progress, token) if self._stops else (None, Progress(num_tokens))
        if token in self._eos:
            return after, Finish(FinishReason.STOP)
        if token in self._stop_ids:
            return after, Finish(FinishReason.STOP, token)
        if found is not None:
            return after, Finish(FinishReason.STOP, StopSequence(found))
        if num_tokens >= self.max_tokens:
            return after, Finish(FinishReason.LENGTH)
        return after, None

    def _look(self, progress: Progress, token: int) -> tuple[int | None, Progress]:
        """The stop that the token completes, if it may end the row yet, and the row after it."""
        found, tail = self._look_in(progress.tail, self._stops, self._shown, token)
        named, whole_tail = self._look_in(progress.whole_tail, self._named_stops, self._special, token)
        after = Progress(progress.num_tokens + 1, tail, whole_tail)
        if after.num_tokens < self._min_tokens:
            return None, after
        return named if found is None else found, after

    def _look_in(self, tail: bytes, stops: _Stops, named: Mapping[int, bytes], token: int) -> tuple[int | None, bytes]:
        """The stop that the token completes behind `tail`, and the bytes to look on in. named: of special tokens."""
        if not stops:
            return None, b""
        window = tail + (named.get(token) or self._bytes_of(token))
        return _find(stops, window, len(tail)), window[-self._tail_length :] if self._tail_length else b""

    def _bytes_of(self, token: int) -> bytes:
        return self._token_bytes[token] if token < len(self._token_bytes) else b""


def _at(special: Mapping[int, bytes], ids: Iterable[int]) -> dict[int, bytes]:
    return {token_id: special[token_id] for token_id in ids if token_id in special}


def _find(stops: _Stops, window: bytes, num_old: int) -> int | None:
    """Index of the stop sequence that ends first, and behind the window's old bytes; the earlier listed among equals.

    A stop sequence within the old bytes came before min_tokens were reached, and ends nothing.
    """
    starts = [(i, stop, window.find(stop, max(num_old - len(stop) + 1, 0))) for i, stop in stops]
    ends = [(at + len(stop), i) for i, stop, at in starts if at >= 0]
    return min(ends)[1] if ends else None
