"""Compiles grammars that clients sent, in a process that may be lost: `python -m server.text.grammar_process SECONDS`.

Nothing else bounds how long some small grammars take. The kernel ends the process once one of them used that much
processor time; `grammar_check.py` starts another. A line of JSON in, a line out; end of input is the end.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from typing import Any

from decoding.contract.grammars import InvalidGrammar, compile_grammar, read_tokens
from decoding.contract.params import Grammar, InvalidParam

MEMORY_BYTES = 2 << 30

WORDS = {
    "json_schema": "is no JSON schema that can be enforced",
    "regex": "is no regular expression of Rust's syntax without look-around and backreferences",
    "lark": "is no Lark grammar of llguidance's dialect",
}
KEYWORDS = (
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "dependentRequired"),
    *("dependentSchemas", "dependencies", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "contentEncoding", "contentMediaType"),
    *("contentSchema", "minProperties", "maxProperties", "patternProperties", "multipleOf", "oneOf", "format"),
)
TOO_COMPLEX = ("fuel", "too big", "too large", "too many", "limit for", "Unable to determine")


def problem(kind: str, reason: str) -> str:
    """What is wrong, in words of ours: the library's quote the client."""
    if any(sign in reason for sign in TOO_COMPLEX):
        return "is too complex"
    if kind == "json_schema" and "Unsatisfiable" in reason:
        return "can be met by nothing"
    if kind == "json_schema" and reason.startswith("Unimplemented keys"):
        named = [keyword for keyword in KEYWORDS if f'"{keyword}"' in reason]
        return f"uses keywords that cannot be enforced: {', '.join(named) or 'unknown ones'}"
    if reason.startswith("Inexact: "):
        return f"cannot be enforced exactly, for {reason.removeprefix('Inexact: ')}"
    return WORDS[kind]


def plain_tokens(special: Mapping[int, str]) -> Any:
    """A token for each byte, and the special ones: whether a grammar compiles depends on no others."""
    free = (i for i in range(256 + len(special) + 1) if i not in special)
    pieces = {i: bytes([byte]) for byte, i in zip(range(256), free, strict=False)}
    end = max([*special, *pieces]) + 1
    return read_tokens([pieces.get(i, b"") for i in range(end)], special, [end])


def check(asked: dict[str, str], tokens: Any) -> str | None:
    """What is wrong with a grammar, if anything."""
    try:
        matcher = compile_grammar(Grammar(asked["kind"], asked["text"]), tokens)  # type: ignore[arg-type]
    except (InvalidGrammar, InvalidParam) as error:
        return problem(asked["kind"], _first_words(str(error)))
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        return problem(asked["kind"], _first_words(matcher.get_error()))
    return None if any(mask) else "can be met by nothing"


def _first_words(reason: str) -> str:
    """The message itself, without the place and the state behind it."""
    return reason.partition("\n")[0].partition("failed to compile JSON schema: ")[2] or reason.partition("\n")[0]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's end is the end of the input
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokens = plain_tokens({int(i): name for i, name in json.loads(sys.stdin.readline())})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        found = check(json.loads(line), tokens)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
