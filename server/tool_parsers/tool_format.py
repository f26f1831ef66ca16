"""What a format of tool calls must say of itself: one file each beside this one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from server.tool_parsers.parser import CallParser


class ToolFormat(Protocol):
    """How a family of models writes calls. Stateless: `parser` makes what keeps a choice's state."""

    NAME: ClassVar[str]
    MARKERS: ClassVar[tuple[str, ...]]  # tokens that must stay in the text, though they may be special

    def is_in(self, template: str) -> bool:
        """Whether a chat template teaches this format."""

    def parser(self, known: frozenset[str]) -> CallParser:
        """known: the names of the request's functions."""

    def new_id(self) -> str:
        """An id for a call."""


def random_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def written(calls: Sequence[dict[str, Any]]) -> list[tuple[str, Any]]:
    """(name, arguments) of the calls of a message, as templates know them."""
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
