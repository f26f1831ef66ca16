"""`[TOOL_CALLS]` and a list of `{"name": …, "arguments": …}`, or `[TOOL_CALLS]name[ARGS]{…}` per call: Mistral."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import ClassVar

from server.text.tool_parsers.parser import CallParser, CallSyntax
from server.text.tool_parsers.tool_format import Called, Literal, as_object

BEGIN = "[TOOL_CALLS]"
ID_LENGTH = 9  # Mistral's templates refuse any other in the history


class Mistral:
    NAME: ClassVar[str] = "mistral"
    MARKERS: ClassVar[tuple[str, ...]] = (BEGIN, "[ARGS]", "[CALL_ID]")
    ARGUMENTS: ClassVar[str] = "arguments"
    LEAD: ClassVar[str] = BEGIN

    def is_in(self, template: str) -> bool:
        return BEGIN in template

    def parser(self, known: frozenset[str]) -> CallParser:
        return CallParser(CallSyntax(BEGIN, between="[,]", closing="]", is_named=True), known, self.new_id)

    def new_id(self) -> str:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))

    def write(self, calls: Sequence[Called]) -> str:
        return f"{BEGIN} [{', '.join(as_object(called, self.ARGUMENTS) for called in calls)}]"

    def rule(self, literal: Literal, *, is_single: bool) -> str:
        return '"[" call "]"' if is_single else '"[" call (", " call)* "]"'
