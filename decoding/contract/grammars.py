"""Grammars compiled by llguidance: the one place that knows its languages, its limits and its view of a vocabulary.

The server compiles a grammar to check it, the worker to follow it; both with the same options. Nothing is forced: a
mask holds every token that may come next, not just the usual spelling of what must come.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from decoding.contract.json_schema import Inexact, exact
from decoding.contract.params import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

OPTIONS = '%llguidance {"no_forcing": true}\n'
MAX_ITEMS = 5_000
"""Of the parser's for one mask, which bounds its time to some milliseconds. Schemas need tens of them, an ambiguous
rule such as `s: s s | "a"` more with every token: ten times as many take half a second a mask."""

JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""Regular expressions: a blank or none. Free whitespace would let a model go on for ever without saying anything."""


class InvalidGrammar(ValueError):
    """llguidance's words, which quote the grammar: not for clients."""


class TokenTable:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_token_id

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids that a text must have; asked for only where tokens are forced."""
        return []


def read_tokens(
    token_bytes: Sequence[bytes], special_tokens: Mapping[int, str], eos_token_ids: Sequence[int]
) -> LLTokenizer:
    """The vocabulary as grammars see it. token_bytes: by id, empty for special tokens; those match by name alone.

    Raises InvalidGrammar without an EOS: no answer could end.
    """
    from llguidance import LLTokenizer  # noqa: PLC0415 (an optional library: not every engine meets a grammar)

    names = {i: f"<|eos_{i}|>" for i in eos_token_ids} | dict(special_tokens)
    size = max([len(token_bytes), *(i + 1 for i in names)])
    if not eos_token_ids:
        raise InvalidGrammar("the vocabulary has no end of text")
    padded = [*token_bytes, *[b""] * (size - len(token_bytes))]
    tokens = [names[i].encode() if i in names else piece for i, piece in enumerate(padded)]
    return LLTokenizer(TokenTable(tokens, sorted(names), eos_token_ids[0]), size, eos_token=list(eos_token_ids))  # type: ignore[arg-type]


def compile_grammar(grammar: Grammar, tokens: LLTokenizer) -> LLMatcher:
    """A matcher before the first token. Raises InvalidGrammar."""
    from llguidance import LLMatcher, LLParserLimits  # noqa: PLC0415

    limits = LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=50_000,
        step_max_items=MAX_ITEMS,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
    )
    text = LLMatcher.grammar_from_lark(OPTIONS + _lark(grammar))
    matcher = LLMatcher(tokens, text, log_level=0, limits=limits)
    if matcher.is_error():
        raise InvalidGrammar(matcher.get_error())
    return matcher


def _lark(grammar: Grammar) -> str:
    if grammar.kind == "lark":
        if "%llguidance" in grammar.text:
            raise InvalidGrammar("%llguidance is not for requests")
        return grammar.text
    if grammar.kind == "regex":
        return f"start: /{_slashed(grammar.text)}/"
    return "start: %json " + json.dumps(with_form(grammar.text))


def with_form(text: str) -> dict[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidGrammar("the schema is not JSON") from error
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise InvalidGrammar("the schema is no object")
    form = JSON_FORM | schema.get("x-guidance", {})
    try:
        told: dict[str, object] = exact(schema, is_lenient=bool(form.get("lenient")))
    except Inexact as error:
        raise InvalidGrammar(f"Inexact: {error}") from None
    return told | {"x-guidance": form}


def _slashed(pattern: str) -> str:
    """The pattern as it stands between slashes on one line."""
    out, is_escaped = [], False
    for char in pattern:
        out.append("\\" + char if char == "/" and not is_escaped else "\\n" if char == "\n" else char)
        is_escaped = char == "\\" and not is_escaped
    return "".join(out)
