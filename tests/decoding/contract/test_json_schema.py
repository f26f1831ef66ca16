"""What llguidance is told of a schema: bounds and dates as they are meant, and which part cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from decoding.contract.grammars import InvalidGrammar, compile_grammar, read_tokens
from decoding.contract.json_schema import Inexact, exact, parts
from decoding.contract.params import Grammar

INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
UINT64 = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}


@pytest.fixture(scope="module")
def tokens() -> LLTokenizer:
    return read_tokens([bytes([i]) for i in range(256)], {}, [256])


def takes(tokens: LLTokenizer, schema: Any, value: Any) -> bool:
    text = json.dumps(value).encode()
    matcher = compile_grammar(Grammar("json_schema", json.dumps(schema)), tokens)
    return matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "value", "is_taken"),
    [
        (INT64, 0, True),
        (INT64, 2**63 - 1, True),
        (INT64, 2**63, False),
        (INT64, -(2**63) + 1024, True),
        (INT64, -(2**63) - 1, False),
        (INT64 | {"type": ["integer", "null"]}, None, True),
        (UINT64, 10**18, True),
        (UINT64, -1, False),
        (UINT64, 2**64, False),
        ({"type": "integer", "minimum": 2**60, "maximum": 2**61}, 2**60, True),
        ({"type": "integer", "minimum": 2**60, "maximum": 2**61}, 2**60 - 1, False),
        ({"type": "object", "properties": {"a": INT64}, "required": ["a"]}, {"a": 2**63 - 1}, True),
        ({"type": "string", "format": "date"}, "2024-02-29", True),
        ({"type": "string", "format": "date"}, "2000-02-29", True),
        ({"type": "string", "format": "date"}, "1900-02-29", False),
        ({"type": "string", "format": "date"}, "2023-02-29", False),
        ({"type": "string", "format": "date"}, "2023-04-31", False),
        ({"type": "string", "format": "date"}, "2023-04-30", True),
        ({"type": "string", "format": "date-time"}, "2023-02-28T23:59:59.5+01:00", True),
        ({"type": "string", "format": "date-time"}, "2023-02-29T00:00:00Z", False),
        ({"properties": {"format": {"const": "date"}}}, {"format": "date"}, True),
    ],
    ids=str,
)
def test_a_schema_takes_what_it_says(tokens: LLTokenizer, schema: Any, value: Any, is_taken: bool) -> None:
    assert takes(tokens, schema, value) is is_taken


def test_a_bound_that_no_float_holds_is_no_bound_that_can_be_kept(tokens: LLTokenizer) -> None:
    schema = {"items": {"anyOf": [{"type": "integer", "maximum": 2**53 + 1}]}}
    with pytest.raises(Inexact) as inexact:
        exact(schema, is_lenient=False)
    assert (inexact.value.place, inexact.value.keyword) == (("items", "anyOf", 0), "maximum")
    with pytest.raises(InvalidGrammar, match="maximum"):
        compile_grammar(Grammar("json_schema", json.dumps(schema)), tokens)
    assert exact(schema, is_lenient=True) == {"items": {"anyOf": [{"type": "integer"}]}}


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"properties": {"minimum": {"type": "string"}, "properties": {"minimum": 3}}}
    assert exact(schema, is_lenient=False) == schema
    assert [place for place, _ in parts(schema)] == [(), ("properties", "minimum"), ("properties", "properties")]
