"""Splits an answer's text in what the model thinks, between <think> and </think> at the beginning, and what it says.

The white space around either side's text is dropped. A template may open the thinking itself, in the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.text.partial_match import partial_match

BEGIN, END = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """A part of the reasoning."""

    text: str


def opened_by(prompt: str) -> bool:
    """Whether the answer to this prompt begins in the middle of the reasoning."""
    return prompt.rstrip().endswith(BEGIN)


def is_unfinished(message: str) -> bool:
    """Whether a message that is to be continued breaks off in its reasoning."""
    return message.lstrip().startswith(BEGIN) and END not in message


class ReasoningSplit:
    """One choice's text. A marker that may be incomplete is held back."""

    def __init__(self, *, is_open: bool) -> None:
        self._held = ""
        self._is_thinking = is_open
        self._is_over = False  # what comes is said
        self._at_start = True  # of a side: white space is dropped

    def push(self, text: str) -> list[str | Thought]:
        """What is settled of either side."""
        self._held += text
        if not (self._is_over or self._is_thinking):
            self._look_for_beginning()
        parts: list[str | Thought] = []
        if self._is_thinking:
            parts += self._thoughts()
        if self._is_over:
            parts += self._said()
        return parts

    def end(self) -> list[str | Thought]:
        """What was held back. Call it once, after the last text."""
        left, self._held = self._held, ""
        if not left or (self._is_thinking and left.isspace()):
            return []
        return [Thought(left) if self._is_thinking else left]

    def _look_for_beginning(self) -> None:
        start = self._held.lstrip()
        if start.startswith(BEGIN):
            self._held, self._is_thinking = start.removeprefix(BEGIN), True
        elif not BEGIN.startswith(start):
            self._is_over, self._at_start = True, False

    def _thoughts(self) -> list[str | Thought]:
        text, marker, behind = self._held.partition(END)
        self._held = behind if marker else text
        if marker:
            self._is_thinking, self._is_over = False, True
            thought = text.rstrip()
        else:
            settled = text[: len(text) - partial_match(text, (END,))].rstrip()
            thought, self._held = settled, text[len(settled) :]
        if self._at_start:
            thought, self._held = thought.lstrip(), self._held if thought else self._held.lstrip()
        self._at_start = (not thought and self._at_start) or bool(marker)
        return [Thought(thought)] if thought else []

    def _said(self) -> list[str | Thought]:
        said, self._held = self._held, ""
        if self._at_start:
            said = said.lstrip()
            self._at_start = not said
        return [said] if said else []
