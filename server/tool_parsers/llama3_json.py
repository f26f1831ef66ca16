"""`{"name": …, "parameters": …}` as the whole answer, with or without `<|python_tag|>` before it: Llama 3.1 and later.

Several calls are divided by semicolons. Without the tag only an object that names one of the functions is a call.
"""

from __future__ import annotations

from typing import ClassVar

from server.tool_parsers.parser import CallParser, CallSyntax
from server.tool_parsers.tool_format import random_id

TAG = "<|python_tag|>"


class Llama3Json:
    NAME: ClassVar[str] = "llama3_json"
    MARKERS: ClassVar[tuple[str, ...]] = (TAG,)

    def is_in(self, template: str) -> bool:
        return TAG in template or ('"parameters": dictionary' in template and "<|start_header_id|>" in template)

    def parser(self, known: frozenset[str]) -> CallParser:
        return CallParser(CallSyntax(TAG, between=";,", is_bare=True), known, self.new_id)

    def new_id(self) -> str:
        return random_id()
