"""The grammars that hold an answer to calls: what they accept, byte by byte, and that no answer says more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest

from decoding.contract.grammars import compile_grammar, read_tokens
from decoding.contract.params import Grammar, InvalidParam
from server.served import Served
from server.text.tokenizer import Tokenizer
from server.text.tool_parsers.registry import FORMATS
from server.translate.tool_grammar import message_grammar
from server.translate.tool_use import ToolUse
from server.wire.chat import Function, Tool
from tests.server.fake_engine import END, byte_tokenizer, make_served

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "maxLength": 8}},
}
TOOLS = (
    Tool(type="function", function=Function(name="weather", parameters=CITY)),
    Tool(type="function", function=Function(name="now")),
)
HERMES_PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
LLAMA_NOW = '{"name": "now", "parameters": {}}'
MISTRAL_NOW = '{"name": "now", "arguments": {}}'
How = Literal["forced", "single", "free single"]


@pytest.fixture(scope="module")
def served() -> Served:
    return make_served()


@pytest.fixture(scope="module")
def models(served: Served) -> Sequence[Served]:
    """In the second one Mistral's marker is a special token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    return served, replace(served, tokenizer=Tokenizer(tokenizer))


def accepts(served: Served, name: str, how: How, text: str, **thinking: Any) -> bool:
    """Whether the whole text is an answer."""
    use = ToolUse(FORMATS[name], TOOLS, is_forced=how != "free single", is_single=how != "forced")
    grammar = message_grammar(use, None, served, is_thinking=thinking.get("is_thinking", False))
    assert grammar is not None
    return matches(served, grammar, text)


def matches(served: Served, grammar: Grammar, text: str) -> bool:
    vocabulary = served.tokenizer.vocabulary
    special = {i: vocabulary.shown[i].decode() for i in vocabulary.special_ids}
    tokens = read_tokens(served.tokenizer.token_bytes(), special, served.eos_token_ids)
    matcher = compile_grammar(grammar, tokens)
    ids: Sequence[int] = served.tokenizer.encode(text)
    return matcher.try_consume_tokens([*ids]) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("name", "how", "text", "is_accepted"),
    [
        ("hermes", "forced", HERMES_PARIS, True),
        ("hermes", "forced", f"{HERMES_PARIS}\n{HERMES_NOW}", True),
        ("hermes", "single", f"{HERMES_PARIS}\n{HERMES_NOW}", False),
        ("hermes", "forced", f"Well. {HERMES_PARIS}", False),
        ("hermes", "forced", HERMES_PARIS.replace("weather", "other"), False),
        ("hermes", "forced", HERMES_PARIS.replace("Paris", "Paris is a city"), False),
        ("hermes", "forced", HERMES_PARIS.replace("city", "town"), False),
        ("hermes", "forced", HERMES_NOW.replace("{}", '{"a": 1}'), False),
        ("hermes", "free single", "Just <words>.", True),
        ("hermes", "free single", f"Well. {HERMES_PARIS}", True),
        ("hermes", "free single", f"Well. {HERMES_PARIS} {HERMES_NOW}", False),
        ("hermes", "free single", HERMES_PARIS.replace("city", "town"), False),
        ("hermes", "free single", "", True),
        ("llama3_json", "forced", f"{LLAMA_NOW}; {LLAMA_NOW}", True),
        ("llama3_json", "forced", "words", False),
        ("llama3_json", "free single", "words", True),
        ("llama3_json", "free single", LLAMA_NOW, True),
        ("llama3_json", "free single", '{"name": "other"}', False),
        ("mistral", "forced", f"[TOOL_CALLS][{MISTRAL_NOW}, {MISTRAL_NOW}]", True),
        ("mistral", "single", f"[TOOL_CALLS][{MISTRAL_NOW}, {MISTRAL_NOW}]", False),
        ("mistral", "forced", f"[{MISTRAL_NOW}]", False),
        ("mistral", "free single", f"Well. [TOOL_CALLS][{MISTRAL_NOW}]", True),
        ("mistral", "free single", "Well. [TOOL_CALLS]no", False),
    ],
)
def test_only_calls_as_they_are_asked_for_pass(
    models: Sequence[Served], name: str, how: How, text: str, is_accepted: bool
) -> None:
    for model in models if name == "mistral" else models[:1]:
        assert accepts(model, name, how, text) == is_accepted


def test_reasoning_may_come_first_where_the_model_knows_it(served: Served) -> None:
    thinking = replace(served, has_reasoning=True)
    assert accepts(thinking, "hermes", "forced", f"<think>\nhm\n</think>\n\n{HERMES_NOW}")
    assert accepts(thinking, "hermes", "forced", HERMES_NOW)
    assert accepts(thinking, "hermes", "forced", f"hm\n</think>\n\n{HERMES_NOW}", is_thinking=True)
    assert not accepts(thinking, "hermes", "forced", "<think>\nhm\n</think>\n\nWell.")
    assert not accepts(served, "hermes", "forced", f"<think></think>{HERMES_NOW}")


def test_what_a_grammar_lets_through_is_parsed_as_calls(served: Served) -> None:
    for name, text in (
        ("hermes", f"{HERMES_PARIS}\n{HERMES_NOW}"),
        ("llama3_json", f"{LLAMA_NOW}; {LLAMA_NOW}"),
        ("mistral", f"[TOOL_CALLS][{MISTRAL_NOW}, {MISTRAL_NOW}]"),
    ):
        assert accepts(served, name, "forced", text)
        parser = FORMATS[name].parser(frozenset({"now", "weather"}))
        events = [*parser.push(text), *parser.end()]
        assert not [event for event in events if isinstance(event, str)]
        assert len({event.index for event in events if not isinstance(event, str)}) == 2


def test_the_end_token_is_special() -> None:
    assert make_served().tokenizer.special_id(END) is not None
    assert make_served().tokenizer.special_id("<tool_call>") is None


def test_a_schema_for_the_text_leaves_room_for_calls_and_reasoning(served: Served) -> None:
    answer = Grammar("json_schema", '{"type": "integer"}')
    use = ToolUse(FORMATS["hermes"], TOOLS, is_forced=False, is_single=False)
    thinking = replace(served, has_reasoning=True)
    both = message_grammar(use, answer, thinking, is_thinking=False)
    text_only = message_grammar(None, answer, thinking, is_thinking=True)
    assert both is not None
    assert text_only is not None
    for text in ("17", HERMES_PARIS, "<think>hm</think>\n17"):
        assert matches(served, both, text)
    assert not matches(served, both, "words")
    assert matches(served, text_only, "hm</think>17")
    assert not matches(served, text_only, "17")
    assert message_grammar(None, answer, served, is_thinking=False) == answer
    for forced, form in ((True, answer), (False, Grammar("regex", "a"))):
        with pytest.raises(InvalidParam, match="tools"):
            message_grammar(replace(use, is_forced=forced), form, served, is_thinking=False)
