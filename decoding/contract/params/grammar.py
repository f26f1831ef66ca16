"""What an answer must match, as text that llguidance compiles (`logits/grammar.py`).

    LogitsParams(grammar=Grammar("json_schema", '{"type": "object"}'))
    LogitsParams(grammar=Grammar("lark", 'start: "<tool_call>" /[a-z]+/ "</tool_call>"'))

A lark grammar names special tokens as <|name|> or by id as <[42]>. Prompt, pause tokens and other injected ids are no
part of the answer; EOS is allowed where the grammar accepts, and nothing else is where it cannot go on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from decoding.contract.params.invalid import check

GrammarKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """text: a JSON schema, a regular expression (Rust's syntax, the whole answer) or a Lark grammar (llguidance's)."""

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        check(len(self.text) > 0, "grammar", "must not be empty")


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """One of these texts, as it stands."""
    return Grammar("lark", "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices))
