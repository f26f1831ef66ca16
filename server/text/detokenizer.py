"""Token ids of one sequence -> text, as they come, never with half a character.

Works on the bytes that tokens stand for, the same in which the worker looks for stop sequences, so that both see a stop
at the same token. (`tokenizers.DecodeStream` decodes windows again and again, can panic, and drops a first space.)
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence


class Detokenizer:
    """Bytes that complete no character wait for more; bytes that never can become U+FFFD.

    strips_first_space: that of the first token is dropped.
    strips_last_space: a space waits for what follows it, and is dropped where nothing does.
    other: ids that are read otherwise than `pieces` has them.
    waiting: the space that waits from the text before.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        strips_first_space: bool = False,
        strips_last_space: bool = False,
        other: Mapping[int, bytes] | None = None,
        waiting: str = "",
    ) -> None:
        self._pieces = pieces
        self._other = other or {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = strips_first_space
        self._strips_last = strips_last_space
        self._waiting = waiting
        self.num_chars = 0

    def push(self, token_id: int) -> str:
        """The characters this token completes."""
        piece = self._other.get(token_id) or (self._pieces[token_id] if token_id < len(self._pieces) else b"")
        if self._strips and piece:
            self._strips, piece = False, piece.removeprefix(b" ")
        text = self._decoder.decode(piece)
        self.num_chars += len(text)
        if self._strips_last and text:
            text, self._waiting = self._waiting + text, ""
            if text.endswith(" "):
                text, self._waiting = text[:-1], " "
        return text

    def waiting(self) -> str:
        """Take the space that waits."""
        text, self._waiting = self._waiting, ""
        return text

    def text(self, token_ids: Iterable[int]) -> str:
        """The characters these tokens complete."""
        return "".join(map(self.push, token_ids))

    def end(self) -> str:
        """U+FFFD for bytes still waiting; an answer leaves it out."""
        return self._decoder.decode(b"", True)
