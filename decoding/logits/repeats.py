"""What a text repeats of itself: kept up as it grows, for steps that look back do so at every position of every row.

A new id costs one pass over the text, however much is repeated; only a text that is seen first is read id by id.
"""

from __future__ import annotations

import numpy as np

FAR = 128
"""From so many new ids on, reading the text afresh is as quick."""

_NONE = np.empty(0, dtype=np.int32)


def matched_lengths(ids: np.ndarray) -> np.ndarray:
    """For each position but the last: how many ids up to and with it are those at the text's end. int32 [n - 1]

    The Z algorithm on the reversed text: every id is compared a bounded number of times.
    """
    text = ids[::-1].tolist()
    total = len(text)
    found = [0] * total
    left = right = 0  # of the match that reaches furthest
    for start in range(1, total):
        length = min(found[start - left], right - start) if start < right else 0
        if start + length >= right:
            while start + length < total and text[length] == text[start + length]:
                length += 1
            left, right = start, start + length
        found[start] = length
    return np.array(found[:0:-1], dtype=np.int32)


def one_more(matched: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """matched_lengths of `ids` from those of all but the last."""
    grown = np.ones(len(ids) - 1, dtype=np.int32)
    grown[1:] += matched
    grown *= ids[:-1] == ids[-1]
    return grown


class Repeats:
    """matched_lengths of a log's text at the positions that are read, which come in order.

    The text may lose its end and get another (drafts that were not taken): so those at the first position that was read
    since it last grew are kept too.
    """

    __slots__ = ("_first", "_has_grown", "_latest")

    def __init__(self) -> None:
        self._first: tuple[int, np.ndarray] = (0, _NONE)  # length of the text, its matched_lengths
        self._latest = self._first
        self._has_grown = True

    def at(self, ids: np.ndarray) -> np.ndarray:
        """matched_lengths of the text so far: `ids`, int64 [n]."""
        length, matched = self._latest if self._latest[0] <= len(ids) else self._first
        if not length <= len(ids) < length + FAR:
            matched = matched_lengths(ids)
        else:
            for end in range(max(length, 1), len(ids)):
                matched = one_more(matched, ids[: end + 1])
        self._latest = len(ids), matched
        if self._has_grown:
            self._first, self._has_grown = self._latest, False
        return matched

    def grow(self) -> None:
        """The text grows."""
        self._has_grown = True

    def cut(self, length: int) -> None:
        """Only the first `length` ids of the text stay."""
        if self._first[0] > length:
            self._first = (0, _NONE)
        if self._latest[0] > length:
            self._latest = self._first

    def fork(self) -> Repeats:
        twin = Repeats()
        twin._first, twin._latest = self._first, self._latest
        return twin
