"""What a format of tool calls must say of itself: one file each beside this one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from server.text.tool_parsers.parser import CallParser

Called = Mapping[str, Any]
"""The function of a call as templates know it: its name and its arguments, an object."""

Literal = Callable[[str], str]
"""A text as a Lark grammar names it: a special token by its id, anything else in quotes."""


class ToolFormat(Protocol):
    """How a family of models writes calls. Stateless: `parser` makes what keeps a choice's state."""

    NAME: ClassVar[str]
    MARKERS: ClassVar[tuple[str, ...]]  # tokens that must stay in the text, though they may be special
    ARGUMENTS: ClassVar[str]  # the key of a call's arguments
    LEAD: ClassVar[str]  # the text that begins calls after other text; "": calls are the whole answer

    def is_in(self, template: str) -> bool:
        """Whether a chat template teaches this format."""

    def parser(self, known: frozenset[str]) -> CallParser:
        """known: the names of the request's functions."""

    def new_id(self) -> str:
        """An id for a call."""

    def write(self, calls: Sequence[Called]) -> str:
        """Calls as the model would write them, for templates that do not."""

    def rule(self, literal: Literal, *, is_single: bool) -> str:
        """Lark: the calls of an answer, behind LEAD; each object is the rule `call`."""


def random_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def as_object(called: Called, arguments: str) -> str:
    return json.dumps({"name": called["name"], arguments: called["arguments"]}, ensure_ascii=False)
