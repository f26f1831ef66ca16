"""Reads one `{"name": …, "arguments": …}` object as its characters come, and passes the arguments on as written.

Keys may come in any order and others are skipped; arguments that come before the name wait for it. What turns out not
to be such an object before its name is known was no call at all: `raw` is its text.
"""

from __future__ import annotations

import json
from enum import Enum, auto

ARGUMENT_KEYS = ("arguments", "parameters")
MAX_HEAD = 256


class NotACall(Exception):
    """The text is not the object of a call."""


class _Place(Enum):
    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()
    OVER = auto()


class JsonValue:
    """Finds where one JSON value ends. Only strings and brackets are looked at, so what is malformed passes."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def reach(self, text: str, start: int) -> int:
        """The end of the part of `text` behind `start` that belongs to the value."""
        for i in range(start, len(text)):
            if self._in_string:
                self._read_in_string(text[i])
            elif text[i] in "]}, \n\t\r" and self._depth == 0:  # behind a number or a word
                self.is_over = True
                return i
            else:
                self._read(text[i])
            if self.is_over:
                return i + 1
        return len(text)

    def _read_in_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False
            self.is_over = self._depth == 0

    def _read(self, char: str) -> None:
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.is_over = self._depth == 0


class CallScanner:
    """After each `push`: `name` once it is known, `take_arguments` what is new of the arguments."""

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self._place = _Place.START
        self._value = JsonValue()
        self._key = ""
        self._token = ""  # of the key or value being read
        self._arguments = ""
        self._has_arguments = False

    @property
    def is_over(self) -> bool:
        return self._place is _Place.OVER

    @property
    def has_all_arguments(self) -> bool:
        """Whether the arguments came to their end, whatever may follow in the object."""
        return self.is_over or (self._has_arguments and self._place is not _Place.VALUE)

    def push(self, text: str) -> int:
        """How many characters of `text` belong to the object. Raises NotACall, with `raw` up to date."""
        start = 0
        try:
            while start < len(text) and not self.is_over:
                start = self._step(text, start)
        except NotACall:
            self.raw += text
            raise
        self.raw += text[:start]
        return start

    def take_arguments(self) -> str:
        """Text of the arguments that was not taken before; a call without any has {}."""
        if self.is_over and not self._has_arguments:
            self._arguments, self._has_arguments = "{}", True
        taken, self._arguments = self._arguments, ""
        return taken

    def _step(self, text: str, start: int) -> int:
        if self._place is _Place.VALUE or (self._place is _Place.KEY and self._token):
            return self._read_value(text, start)
        char = text[start]
        if char.isspace():
            return start + 1
        if self._place is _Place.KEY and char == '"':
            return self._read_value(text, start)
        return self._punctuation(char, start)

    def _punctuation(self, char: str, start: int) -> int:
        match self._place, char:
            case (_Place.START, "{") | (_Place.COMMA, ","):
                self._begin(_Place.KEY)
            case _Place.COLON, ":":
                self._begin(_Place.VALUE)
            case ((_Place.COMMA | _Place.KEY), "}"):
                self._place = _Place.OVER
            case _:
                raise NotACall
        return start + 1

    def _begin(self, place: _Place) -> None:
        self._place, self._value, self._token = place, JsonValue(), ""

    def _read_value(self, text: str, start: int) -> int:
        if not self._token and text[start].isspace():
            return start + 1
        end = self._value.reach(text, start)
        part = text[start:end]
        self._token += part
        if self._place is _Place.VALUE and self._key in ARGUMENT_KEYS and not self._token.startswith('"'):
            self._has_arguments = True
            self._arguments += part
        if self._value.is_over:
            self._end_value()
        return end

    def _end_value(self) -> None:
        if self._place is _Place.KEY:
            self._key = _string(self._token)
            self._place = _Place.COLON
            return
        if not self._token:
            raise NotACall
        if self._key == "name":
            self.name = _string(self._token)
        elif self._key in ARGUMENT_KEYS and self._token.startswith('"'):  # JSON inside a JSON string
            self._has_arguments = True
            self._arguments += _string(self._token)
        self._place = _Place.COMMA


class NamedScanner:
    """The same for `name{…}` and `name[ARGS]{…}`."""

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self._head = ""
        self._value = JsonValue()
        self._arguments = ""

    @property
    def is_over(self) -> bool:
        return self._value.is_over

    @property
    def has_all_arguments(self) -> bool:
        return self.is_over

    def push(self, text: str) -> int:
        """How many characters of `text` belong to the call. Raises NotACall."""
        start = 0
        while self.name is None and start < len(text):
            self._read_head(text[start], text)
            start += self.name is None
        end = start if self.name is None else self._value.reach(text, start)
        self._arguments += text[start:end]
        self.raw += text[:end]
        return end

    def take_arguments(self) -> str:
        taken, self._arguments = self._arguments, ""
        return taken

    def _read_head(self, char: str, text: str) -> None:
        if char == "{":
            self.name = self._head.partition("[")[0]
        elif (char.isalnum() or char in "_-.:[]") and len(self._head) < MAX_HEAD:
            self._head += char
        else:
            self.raw += text
            raise NotACall


def _string(token: str) -> str:
    try:
        value = json.loads(token, strict=False)
    except ValueError:
        raise NotACall from None
    if not isinstance(value, str) or not value:
        raise NotACall
    return value
