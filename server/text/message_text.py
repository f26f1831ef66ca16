"""The text of a chat's choice -> the parts of the assistant's message: reasoning first, then content and tool calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from server.text.reasoning import ReasoningSplit, Thought
from server.text.tool_parsers.call import CallDelta
from server.text.tool_parsers.parser import CallParser
from server.text.tool_parsers.tool_format import ToolFormat


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What is looked for in an answer's text.

    functions: those that may be called.
    is_open: the prompt ends in the middle of the reasoning.
    """

    tools: ToolFormat | None = None
    functions: frozenset[str] = frozenset()
    has_reasoning: bool = False
    is_open: bool = False

    def reader(self) -> MessageText:
        """For one choice."""
        split = ReasoningSplit(is_open=self.is_open) if self.has_reasoning else None
        parser = self.tools.parser(self.functions) if self.tools is not None else None
        return MessageText(split, parser)

    @property
    def markers(self) -> frozenset[str]:
        """Tokens that the text must show even if they are special."""
        shown = ("<think>", "</think>") if self.has_reasoning else ()
        return frozenset(shown + (self.tools.MARKERS if self.tools is not None else ()))


@dataclass(frozen=True, slots=True)
class Parts:
    """What a piece of text adds to a message."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class MessageText:
    """One choice's text on its way into the message."""

    def __init__(self, split: ReasoningSplit | None, parser: CallParser | None) -> None:
        self._split = split
        self._parser = parser
        self.has_calls = False

    @property
    def has_cut_call(self) -> bool:
        """Whether the text so far ends inside a call."""
        return self._parser is not None and self._parser.is_cut

    def push(self, text: str, *, is_last: bool) -> Parts:
        thoughts: list[str] = []
        said = list(self._said(text, is_last, thoughts))
        content: list[str] = []
        calls: list[CallDelta] = []
        for event in self._events(said, is_last):
            if isinstance(event, CallDelta):
                _add(calls, event)
            else:
                content.append(event)
        self.has_calls = self.has_calls or bool(calls)
        return Parts("".join(content), "".join(thoughts), tuple(calls))

    def _said(self, text: str, is_last: bool, thoughts: list[str]) -> Iterator[str]:
        """What is no thought; thoughts are put into `thoughts`."""
        if self._split is None:
            yield text
            return
        for part in self._split.push(text) + (self._split.end() if is_last else []):
            if isinstance(part, Thought):
                thoughts.append(part.text)
            else:
                yield part

    def _events(self, said: Iterable[str], is_last: bool) -> Iterator[str | CallDelta]:
        if self._parser is None:
            yield from said
            return
        for text in said:
            yield from self._parser.push(text)
        if is_last:
            yield from self._parser.end()


def joined_calls(deltas: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """The calls that these deltas make up."""
    calls: list[CallDelta] = []
    for delta in deltas:
        _add(calls, delta)
    return tuple(calls)


def _add(calls: list[CallDelta], delta: CallDelta) -> None:
    """Deltas of one call become one."""
    if calls and calls[-1].index == delta.index:
        last = calls[-1]
        calls[-1] = CallDelta(last.index, last.arguments + delta.arguments, last.id, last.name)
    else:
        calls.append(delta)
