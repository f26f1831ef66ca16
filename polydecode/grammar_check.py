"""Whether a grammar compiles, found out in this process: it is the caller's own, so nothing guards against its cost."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from decoding.contract.params import Grammar
from server.text.grammar_check import GrammarCheck
from server.text.grammar_process import check, plain_tokens


class OwnGrammarCheck(GrammarCheck):
    """The server's, with its memory of answers and its words, but no second process."""

    @cached_property
    def _tokens(self) -> Any:
        return plain_tokens(dict(self._special_tokens))

    def _ask(self, grammar: Grammar) -> str | None:
        return check({"kind": grammar.kind, "text": grammar.text}, self._tokens)
