"""Text -> text and tool calls, as it comes: what the formats share. A format says where calls begin and end.

Text that may be the beginning of a marker is held back, and so is white space, which a call that follows swallows.
A marker with no call behind it is text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.text.partial_match import partial_match
from server.text.tool_parsers.call import CallDelta, Event
from server.text.tool_parsers.scanner import CallScanner, NamedScanner, NotACall


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """begin: the text before the first call; end: behind each, or "". between: characters that may stand around calls.

    closing: the characters of `between` behind which only text comes. is_bare: an answer may begin with a call itself.
    is_named: a call may also be the function's name followed by the arguments.
    """

    begin: str
    end: str = ""
    between: str = ""
    closing: str = ""
    is_bare: bool = False
    is_named: bool = False


class CallParser:
    """One choice's text. `known`: the functions that there are; a call without a marker must name one of them."""

    def __init__(self, syntax: CallSyntax, known: frozenset[str], new_id: Callable[[], str]) -> None:
        self._syntax = syntax
        self._known = known
        self._new_id = new_id
        self._held = ""
        self._state: Callable[[], Iterator[Event]] | None = self._beginning if syntax.is_bare else self._text
        self._unsaid = ""  # white space and markers, text again if no call follows
        self._scanner: CallScanner | NamedScanner = CallScanner()
        self._num_calls = 0
        self._is_marked = False
        self._is_open = False  # behind a call, before its end marker

    def push(self, text: str) -> Iterator[Event]:
        self._held += text
        yield from self._run()

    @property
    def is_cut(self) -> bool:
        """Whether a call has begun whose arguments are not over."""
        scanner = self._scanner
        return self._state == self._object and scanner.name is not None and not scanner.has_all_arguments

    def end(self) -> Iterator[Event]:
        """What was held back. Call it once, after the last text."""
        if self._state == self._object and self._scanner.name is None:
            yield from self._no_call(self._scanner.raw)
            yield from self._run()
        left = self._unsaid + self._held
        if left and not (self._num_calls and (left.isspace() or self._state in (self._object, self._calls))):
            yield left
        self._unsaid = self._held = ""

    def _run(self) -> Iterator[Event]:
        """Each state takes what it can of the held text; one that took nothing waits for more."""
        while self._held and self._state is not None:
            before = self._state, self._held
            yield from self._state()
            if before == (self._state, self._held):
                return

    def _beginning(self) -> Iterator[Event]:
        """Before the answer's first word: a brace is a call's."""
        self._take_space()
        if self._held:
            self._state = self._calls if self._held[0] == "{" else self._text
        yield from ()

    def _text(self) -> Iterator[Event]:
        marker = self._syntax.begin
        start = self._held.find(marker)
        end = start if start >= 0 else len(self._held) - partial_match(self._held, (marker,))
        said = self._unsaid + self._held[:end]
        self._held = self._held[end:]
        text = said.rstrip()
        self._unsaid = said[len(text) :]
        if text:
            yield text
        if start >= 0:
            self._is_marked = True
            self._held = self._held.removeprefix(marker)
            self._unsaid += marker
            self._state = self._calls

    def _calls(self) -> Iterator[Event]:
        """Behind a marker or a call: another call, the end, or no call after all."""
        syntax = self._syntax
        char = self._held[0]
        if self._held.startswith(syntax.begin):
            self._unsaid += syntax.begin
            self._held = self._held.removeprefix(syntax.begin)
            self._is_open = False
        elif syntax.begin.startswith(self._held):
            return
        elif char.isspace() or char in syntax.between:
            self._unsaid += char
            self._held = self._held[1:]
            if char in syntax.closing:
                self._leave()
        elif char == "{" or (syntax.is_named and char.isalpha()):
            self._scanner = CallScanner() if char == "{" else NamedScanner()
            self._state = self._object
        elif syntax.end and self._held.startswith(syntax.end):
            self._unsaid += syntax.end
            self._held = self._held.removeprefix(syntax.end)
            self._leave()
        elif syntax.end and syntax.end.startswith(self._held):
            return
        elif self._is_open:
            self._state = self._broken
        else:
            yield from self._no_call("")

    def _leave(self) -> None:
        """Behind the last call; if there was none, what was read is text."""
        self._state, self._is_open = self._text, False
        if self._num_calls:
            self._unsaid = ""

    def _object(self) -> Iterator[Event]:
        scanner, is_new = self._scanner, self._scanner.name is None
        held, self._held = self._held, ""
        try:
            self._held = held[scanner.push(held) :]
        except NotACall:
            if is_new:
                yield from self._no_call(scanner.raw)
            else:  # announced already: what follows cannot be told from its arguments
                self._state = self._broken
            return
        if scanner.name is None:
            if scanner.is_over:
                yield from self._no_call(scanner.raw)
            return
        if is_new and not self._is_marked and scanner.name not in self._known:
            yield from self._no_call(scanner.raw)
            return
        yield from self._news(is_new)

    def _news(self, is_new: bool) -> Iterator[Event]:
        scanner = self._scanner
        if is_new:
            self._num_calls += 1
            self._unsaid = ""
        arguments = scanner.take_arguments()
        begun = (self._new_id(), scanner.name) if is_new else (None, None)
        if is_new or arguments:
            yield CallDelta(self._num_calls - 1, arguments, *begun)
        if scanner.is_over:
            self._state, self._is_open = self._calls, bool(self._syntax.end)

    def _broken(self) -> Iterator[Event]:
        """Skips to where the next call can begin."""
        markers = [marker for marker in (self._syntax.end, self._syntax.begin) if marker]
        found = min((at for marker in markers if (at := self._held.find(marker)) >= 0), default=None)
        if found is None:
            self._held = self._held[len(self._held) - partial_match(self._held, markers) :]
        else:
            self._held = self._held[found:].removeprefix(self._syntax.end)
            self._leave()
        yield from ()

    def _no_call(self, raw: str) -> Iterator[Event]:
        """What was read is text, but for calls further on."""
        said, self._unsaid = self._unsaid + raw[:1], ""
        self._held = raw[1:] + self._held
        self._state = self._text
        if said:
            yield said

    def _take_space(self) -> None:
        left = self._held.lstrip()
        self._unsaid += self._held[: len(self._held) - len(left)]
        self._held = left
