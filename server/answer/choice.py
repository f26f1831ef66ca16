"""One choice on its way to the client: the worker's chunks in, pieces of settled text and scored tokens out.

Plain answers join the same pieces that a stream sends, so both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from decoding.contract.frames import Chunk, PromptScores
from decoding.contract.params.stopping import StopSequence
from server.text.detokenizer import Detokenizer
from server.text.message_text import MessageText, Parts, joined_calls
from server.text.stop_text import StopText
from server.text.tool_parsers.call import CallDelta
from server.translate.plan import Prompt, Shown

Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token, its log-prob (None: the first of a prompt), the best alternatives, and the character it begins at."""

    token_id: int
    logprob: float | None
    top: Top
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk adds to a choice. finish_reason, score and figures come with the last.

    text: of a chat's message the content; reasoning and calls: its other parts.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: str | None = None
    score: float | None = None
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """A choice's pieces as one."""
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        scored=tuple(token for piece in pieces for token in piece.scored),
        finish_reason=pieces[-1].finish_reason if pieces else None,
        score=pieces[-1].score if pieces else None,
        figures=pieces[-1].figures if pieces else {},
        reasoning="".join(piece.reasoning for piece in pieces),
        calls=joined_calls(call for piece in pieces for call in piece.calls),
    )


def echo(prompt: Prompt, scores: PromptScores | None, num_top: int) -> Piece:
    """The prompt as the beginning of a choice."""
    if scores is None:
        return Piece(prompt.text)
    columns = zip(prompt.ids, scores.logprobs, scores.top, prompt.starts, strict=True)
    scored = tuple(ScoredToken(token_id, logprob, top[:num_top], start) for token_id, logprob, top, start in columns)
    return Piece(prompt.text, scored=scored)


class Choice:
    """Turns chunks into pieces. offset: how many characters stand before the choice's own text.

    message: takes the text apart if it is a chat's and there is anything to look for.
    """

    def __init__(
        self,
        shown: Shown,
        eos_token_ids: Sequence[int],
        detokenizer: Detokenizer,
        offset: int = 0,
        message: MessageText | None = None,
    ) -> None:
        self._shown = shown
        self._eos_token_ids = frozenset(eos_token_ids)
        self._detokenizer = detokenizer
        self._text = StopText(shown.stops, include=shown.stop_text, bare=shown.bare_stops)
        self._offset = offset
        self._message = message

    def push(self, chunk: Chunk) -> Piece:
        offsets = self._read(chunk)
        parts = self._parts(self._take(chunk), is_last=chunk.finish_reason is not None)
        return Piece(
            text=parts.content,
            token_ids=chunk.token_ids,
            scored=self._scored(chunk, offsets),
            finish_reason=self._finish_reason(chunk),
            score=chunk.score,
            figures=chunk.figures or {},
            reasoning=parts.reasoning,
            calls=parts.calls,
        )

    def _parts(self, text: str, *, is_last: bool) -> Parts:
        return Parts(text) if self._message is None else self._message.push(text, is_last=is_last)

    def _finish_reason(self, chunk: Chunk) -> str | None:
        """A message with calls that came to its end stopped for them to be made, unless one was cut off."""
        calls = self._message is not None and self._message.has_calls and not self._message.has_cut_call
        return "tool_calls" if calls and chunk.finish_reason == "stop" else chunk.finish_reason

    def _read(self, chunk: Chunk) -> list[int]:
        """Take in the tokens' text; the character each begins at."""
        offsets = []
        silent = len(chunk.token_ids) - 1 if self._ends_silently(chunk) else None
        for i, token_id in enumerate(chunk.token_ids):
            offsets.append(self._offset + self._detokenizer.num_chars)
            if i != silent:
                text = self._detokenizer.push(token_id)
                is_stop = i == len(chunk.token_ids) - 1 and isinstance(chunk.stop_reason, StopSequence)
                self._text.push(text + self._detokenizer.waiting() if is_stop else text)
        return offsets

    def _take(self, chunk: Chunk) -> str:
        if chunk.finish_reason is None:
            return self._text.settled()
        stop = chunk.stop_reason
        return self._text.cut(stop.index) if isinstance(stop, StopSequence) else self._text.rest()

    def _ends_silently(self, chunk: Chunk) -> bool:
        """The last token ended the row and is no text: EOS never is, a stop token only if stops are to be shown."""
        if chunk.finish_reason != "stop" or isinstance(chunk.stop_reason, StopSequence) or not chunk.token_ids:
            return False
        last = chunk.token_ids[-1]
        if chunk.stop_reason is None:
            return last in self._eos_token_ids
        return last == chunk.stop_reason and not self._shown.stop_text

    def _scored(self, chunk: Chunk, offsets: list[int]) -> tuple[ScoredToken, ...]:
        num_top = self._shown.logprobs
        if num_top is None or chunk.logprobs is None:
            return ()
        tops: Sequence[Top] = chunk.top if chunk.top is not None else ((),) * len(offsets)
        columns = zip(chunk.token_ids, chunk.logprobs, tops, offsets, strict=True)
        return tuple(ScoredToken(token_id, lp, top[:num_top], offset) for token_id, lp, top, offset in columns)
