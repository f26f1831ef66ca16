"""The answer in a text: the last match of a pattern over token bytes, and the tokens that overlap it.

Patterns come from clients, so they run in RE2, whose searches take linear time; the last match is found by bisection,
not by walking all matches, so that no pattern and no text can hold the worker up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from decoding.contract.params import InvalidParam

if TYPE_CHECKING:
    import re2

LAST_NUMBER = r"-?\$?\d+(?:,\d{3})*(?:\.\d+)?"
"""GSM8K's answers: whole or decimal, with thousands separators, perhaps a price.

No fractions ("3/4", "½"), no exponents ("1e3"); in "10-5" it finds -5. The authors' patterns see no more.
"""

MAX_PROGRAM = 4000
"""Instructions that a pattern may compile to: the factor before the linear time."""

LONGEST_ALIGNED = 256
"""Bytes before the last possible beginning of a match that a match may begin at; a longer one is cut on its left."""

_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """text: as compared with other answers. The tokens from `start` up to `stop` say it, in these bytes."""

    text: str
    start: int
    stop: int
    said: bytes = field(default=b"", compare=False)


def compile_answer(pattern: str) -> re2._Regexp:
    """Raises InvalidParam where RE2 refuses the pattern (backreferences and look-around do not exist there)."""
    import re2  # noqa: PLC0415 - all other strategies run without it

    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise InvalidParam("cot_decoding.answer_regex", f"is no RE2 pattern: {reason}") from None
    if compiled.programsize > MAX_PROGRAM:
        raise InvalidParam("cot_decoding.answer_regex", "is too large")
    if compiled.fullmatch(b""):
        raise InvalidParam("cot_decoding.answer_regex", "must not match the empty text")
    return compiled


def find_answer(pattern: re2._Regexp, pieces: Sequence[bytes]) -> Answer | None:
    """The last match in the joined pieces, or its first group where the pattern has one."""
    text = b"".join(pieces)
    first = max(_last_start(pattern, text) - LONGEST_ALIGNED, 0)
    spans = [_span(match) for match in pattern.finditer(text, first)]
    filled = [(start, end) for start, end in spans if end > start]
    return _answer(pieces, *filled[-1]) if filled else None


def first_line(pieces: Sequence[bytes]) -> Answer | None:
    """All that stands before the first line break, without the blanks around it."""
    line = b"".join(pieces).partition(b"\n")[0]
    text = line.strip()
    start = line.find(text)
    return _answer(pieces, start, start + len(text)) if text else None


def last_place(said: bytes, pieces: Sequence[bytes]) -> Answer | None:
    """Where the joined pieces say the same for the last time, not as part of a longer word or number."""
    text = b"".join(pieces)
    start = text.rfind(said)
    while start >= 0:
        end = start + len(said)
        if not (_joins(text, start) or _joins(text, end)):
            return _answer(pieces, start, end)
        start = text.rfind(said, 0, end - 1)
    return None


def _joins(text: bytes, at: int) -> bool:
    """Whether letters or digits stand on both sides of the place."""
    return 0 < at < len(text) and text[at - 1 : at + 1].isalnum()


def first_line_of(pieces: Sequence[bytes]) -> list[bytes]:
    """The pieces up to the first line break."""
    break_at = b"".join(pieces).find(b"\n")
    return list(pieces) if break_at < 0 else _cut(pieces, break_at)


def cut_at(pieces: Sequence[bytes], stop: bytes) -> list[bytes]:
    """The pieces up to where `stop` stands for the last time."""
    return _cut(pieces, b"".join(pieces).rfind(stop))


def _cut(pieces: Sequence[bytes], end: int) -> list[bytes]:
    starts = accumulate((len(piece) for piece in pieces), initial=0)
    return [piece[: max(end - start, 0)] for piece, start in zip(pieces, starts, strict=False)]


def _last_start(pattern: re2._Regexp, text: bytes) -> int:
    """The last position from which a search still finds something (0 where none does)."""
    low, high = 0, len(text) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pattern.search(text, middle) else (low, middle)
    return low


def _span(match: re2._Match) -> tuple[int, int]:
    start, end = match.span(1) if match.re.groups else match.span()
    return (start, end) if start >= 0 else match.span()


def _answer(pieces: Sequence[bytes], start: int, end: int) -> Answer:
    """The tokens that overlap the bytes from `start` up to `end`."""
    ends = list(accumulate(len(piece) for piece in pieces))
    tokens = [i for i, (piece, e) in enumerate(zip(pieces, ends, strict=True)) if e > start and e - len(piece) < end]
    said = b"".join(pieces)[start:end]
    return Answer(normalised(said.decode(errors="replace")), tokens[0], tokens[-1] + 1, said)


def normalised(said: str) -> str:
    """Equal answers become equal texts: numbers lose separators, currency and idle zeros, other texts their case."""
    number = _NUMBER.fullmatch(said.replace(",", "").replace("$", "").strip())
    if number is None:
        return " ".join(said.split()).casefold()
    sign, whole, fraction = number.groups(default="")
    value = ".".join(filter(None, (whole.lstrip("0") or "0", fraction.rstrip("0"))))
    return value if value == "0" else sign + value
