"""`<tool_call>{"name": …, "arguments": …}</tool_call>`, once per call: Hermes, Qwen and those that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.text.tool_parsers.parser import CallParser, CallSyntax
from server.text.tool_parsers.tool_format import Called, Literal, as_object, random_id

BEGIN, END = "<tool_call>", "</tool_call>"
XML_TAGS = ("<function=", "<arg_key>")


class Hermes:
    NAME: ClassVar[str] = "hermes"
    MARKERS: ClassVar[tuple[str, ...]] = (BEGIN, END)
    ARGUMENTS: ClassVar[str] = "arguments"
    LEAD: ClassVar[str] = BEGIN

    def is_in(self, template: str) -> bool:
        """Some templates have the same marker with XML inside, as Qwen3-Coder's and GLM's; that is not this format."""
        return BEGIN in template and not any(tag in template for tag in XML_TAGS)

    def parser(self, known: frozenset[str]) -> CallParser:
        return CallParser(CallSyntax(BEGIN, END), known, self.new_id)

    def new_id(self) -> str:
        return random_id()

    def write(self, calls: Sequence[Called]) -> str:
        return "\n".join(f"{BEGIN}\n{as_object(called, self.ARGUMENTS)}\n{END}" for called in calls)

    def rule(self, literal: Literal, *, is_single: bool) -> str:
        one = f'"\\n" call "\\n" {literal(END)}'
        return one if is_single else f'{one} ("\\n" {literal(BEGIN)} {one})*'
