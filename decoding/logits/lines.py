"""Where in a code line a text stands: AdapT's state machine over token classes.

In the authors' loop a newline token opens a line, indentation tokens directly after it keep it open, and the token that
comes after newline and indentation is the line's first word. One token may hold a newline and the indentation after it;
such a token counts as both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OTHER, NEWLINE, INDENT, NEWLINE_AND_INDENT = range(4)


def token_lines(token_bytes: Sequence[bytes]) -> np.ndarray:
    """The class of each token id, int8 [ids]."""
    return np.fromiter((_classify(text) for text in token_bytes), dtype=np.int8, count=len(token_bytes))


def _classify(text: bytes) -> int:
    if text.endswith(b"\n"):
        return NEWLINE
    _, newline, after = text.rpartition(b"\n")
    if not after.isspace():
        return OTHER
    return NEWLINE_AND_INDENT if newline else INDENT


def needs_first_word(ids: np.ndarray, classes: np.ndarray) -> bool:
    """Whether the text [length] ends with a newline and the indentation of a line that has no word yet."""
    at = len(ids) - 1
    while at >= 0 and _class_of(ids[at], classes) == INDENT:
        at -= 1
    opening = _class_of(ids[at], classes) if at >= 0 else OTHER
    has_indent = at < len(ids) - 1
    return opening == NEWLINE_AND_INDENT or (opening == NEWLINE and has_indent)


def _class_of(token_id: int, classes: np.ndarray) -> int:
    return int(classes[token_id]) if token_id < len(classes) else OTHER
