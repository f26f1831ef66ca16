"""`{"name": …, "parameters": …}` as the whole answer, with or without `<|python_tag|>` before it: Llama 3.1 and later.

Several calls are divided by semicolons. Without the tag only an object that names one of the functions is a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from server.text.tool_parsers.parser import CallParser, CallSyntax
from server.text.tool_parsers.tool_format import Called, Literal, as_object, random_id

TAG = "<|python_tag|>"


class Llama3Json:
    NAME: ClassVar[str] = "llama3_json"
    MARKERS: ClassVar[tuple[str, ...]] = (TAG,)
    ARGUMENTS: ClassVar[str] = "parameters"
    LEAD: ClassVar[str] = ""

    def is_in(self, template: str) -> bool:
        return TAG in template or ('"parameters": dictionary' in template and "<|start_header_id|>" in template)

    def parser(self, known: frozenset[str]) -> CallParser:
        return CallParser(CallSyntax(TAG, between=";,", is_bare=True), known, self.new_id)

    def new_id(self) -> str:
        return random_id()

    def write(self, calls: Sequence[Called]) -> str:
        return "; ".join(as_object(called, self.ARGUMENTS) for called in calls)

    def rule(self, literal: Literal, *, is_single: bool) -> str:
        return "call" if is_single else 'call ("; " call)*'
