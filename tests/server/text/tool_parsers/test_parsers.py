"""Answers in three formats -> text and calls, whole and cut into pieces at every place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.tool_parsers.call import CallDelta, Event
from server.text.tool_parsers.registry import FORMATS, taught_by

KNOWN = frozenset({"get_weather", "add"})
PARIS = ("get_weather", {"city": "Paris {[\"'\\ü"})
SUM = ("add", {"a": 1, "b": [2, {"c": "]}"}]})
P, S = (json.dumps(arguments) for _, arguments in (PARIS, SUM))

# format, what the model says, the text that is left, the calls
CASES: list[tuple[str, str, str, list[tuple[str, object]]]] = [
    ("hermes", "Just words < here <tool", "Just words < here <tool", []),
    (
        "hermes",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {P}}}\n</tool_call>',
        "",
        [PARIS],
    ),
    (
        "hermes",
        f'I look.\n<tool_call>{{"arguments": {S}, "id": [1], "name": "add"}}</tool_call>\n'
        f'<tool_call>\n{{"name": "get_weather", "arguments": {P}}}\n</tool_call>\n',
        "I look.",
        [SUM, PARIS],
    ),
    ("hermes", f'<tool_call>{{"name": "add", "arguments": {json.dumps(S)}}}</tool_call>', "", [SUM]),
    ("hermes", '<tool_call>{"name": "add"}</tool_call> done', " done", [("add", {})]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {}}}</tool_call>', "", [("add", {})]),
    ("hermes", "<tool_call> oops </tool_call>", "<tool_call> oops </tool_call>", []),
    ("hermes", '<tool_call>{"nam": 1}</tool_call>', '<tool_call>{"nam": 1}</tool_call>', []),
    ("hermes", "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    ("hermes", '<tool_call>{oops <tool_call>{"name": "add"}</tool_call>', "<tool_call>{oops", [("add", {})]),
    ("hermes", '{"name": "add", "arguments": {}}', '{"name": "add", "arguments": {}}', []),
    ("llama3_json", f'{{"name": "add", "parameters": {S}}}', "", [SUM]),
    ("llama3_json", f'\n{{"type": "function", "name": "add", "parameters": {S}}}', "", [SUM]),
    ("llama3_json", f'<|python_tag|>{{"name": "other", "parameters": {S}}}', "", [("other", SUM[1])]),
    (
        "llama3_json",
        f'{{"name": "add", "parameters": {S}}}; {{"name": "get_weather", "parameters": {P}}}',
        "",
        [SUM, PARIS],
    ),
    ("llama3_json", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    ("llama3_json", "{braces} in text", "{braces} in text", []),
    ("llama3_json", f'Well: {{"name": "add", "parameters": {S}}}', f'Well: {{"name": "add", "parameters": {S}}}', []),
    ("llama3_json", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    ("mistral", f'[TOOL_CALLS] [{{"name": "add", "arguments": {S}}}]', "", [SUM]),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "add", "arguments": {S}, "id": "abcdefghi"}}, '
        f'{{"name": "get_weather", "arguments": {P}}}] bye',
        " bye",
        [SUM, PARIS],
    ),
    ("mistral", f"One: [TOOL_CALLS]add[ARGS]{S}[TOOL_CALLS]get_weather{P}", "One:", [SUM, PARIS]),
    ("mistral", "[TOOL_CALLS] no idea", "[TOOL_CALLS] no idea", []),
]


def parse(name: str, pieces: Iterable[str]) -> list[Event]:
    parser = FORMATS[name].parser(KNOWN)
    return [*(event for piece in pieces for event in parser.push(piece)), *parser.end()]


def text_of(events: Sequence[Event]) -> str:
    return "".join(event for event in events if isinstance(event, str))


def calls_of(events: Sequence[Event]) -> list[tuple[str | None, str]]:
    """(name, arguments) of each call; names and ids must come first and once, and indices in order."""
    calls: list[tuple[str | None, str]] = []
    for delta in (event for event in events if isinstance(event, CallDelta)):
        if delta.index == len(calls):
            assert delta.id
            calls.append((delta.name, ""))
        else:
            assert (delta.index, delta.id, delta.name) == (len(calls) - 1, None, None)
        calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return calls


@pytest.mark.parametrize(("name", "said", "text", "calls"), CASES)
def test_an_answer_is_text_and_calls(name: str, said: str, text: str, calls: list[tuple[str, object]]) -> None:
    events = parse(name, [said])
    assert text_of(events) == text
    assert [(called, json.loads(arguments)) for called, arguments in calls_of(events)] == calls


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_of_any_size_say_the_same(name: str) -> None:
    for said in (said for form, said, _, _ in CASES if form == name):
        whole = parse(name, [said])
        for size in range(1, len(said)):
            events = parse(name, [said[i : i + size] for i in range(0, len(said), size)])
            assert (text_of(events), calls_of(events)) == (text_of(whole), calls_of(whole)), (said, size)
        for cut in range(1, len(said)):
            events = parse(name, [said[:cut], said[cut:]])
            assert (text_of(events), calls_of(events)) == (text_of(whole), calls_of(whole)), (said, cut)


def test_arguments_come_as_they_are_written() -> None:
    parser = FORMATS["hermes"].parser(KNOWN)
    assert list(parser.push('Hi. <tool_call>{"name": "ad')) == ["Hi."]
    (begun,) = parser.push('d", "arguments": {"a"')
    assert isinstance(begun, CallDelta)
    assert (begun.name, begun.arguments) == ("add", '{"a"')
    assert list(parser.push(": 1")) == [CallDelta(0, ": 1")]
    assert list(parser.push("}}</tool")) == [CallDelta(0, "}")]
    assert list(parser.push("_call>")) == []
    assert list(parser.end()) == []


def test_an_answer_cut_off_keeps_the_arguments_it_has() -> None:
    events = parse("hermes", ['<tool_call>{"name": "add", "arguments": {"a": 1'])
    assert calls_of(events) == [("add", '{"a": 1')]
    assert text_of(parse("hermes", ['<tool_call>{"name": "ad'])) == '<tool_call>{"name": "ad'


def test_mistrals_ids_have_the_length_its_templates_ask_for() -> None:
    ids = [FORMATS["mistral"].new_id() for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(each) == 9 and each.isalnum() for each in ids)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("return calls within <tool_call></tool_call> tags", "hermes"),
        ("<tool_call>\n<function=f>", None),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ('<|start_header_id|> {"name": function name, "parameters": dictionary of argument name', "llama3_json"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("{{ message.content }}", None),
    ],
)
def test_the_template_says_which_format_it_is(template: str, name: str | None) -> None:
    found = taught_by(template)
    assert (found.NAME if found else None) == name


FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<tool", "[TOOL", "[", "]", "{", "}"),
    *('"name": "add"', '"arguments": ', '"parameters": ', '{"a": 1}', '"', "\\", ",", ":", ";", " ", "\n", "add", "7"),
)


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(FRAGMENTS), max_size=16), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_no_text_breaks_a_parser_or_depends_on_its_pieces(name: str, fragments: list[str], size: int) -> None:
    said = "".join(fragments)
    whole = parse(name, [said])
    pieces = parse(name, [said[i : i + size] for i in range(0, len(said), size)])
    assert (text_of(pieces), calls_of(pieces)) == (text_of(whole), calls_of(whole))
