"""Thinking and answer are told apart, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from server.text.message_text import MessageForm, Parts, joined_calls
from server.text.reasoning import opened_by
from server.text.tool_parsers.hermes import Hermes

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'

# opened by the template, what the model says, reasoning, content
CASES = [
    (False, "<think>\nI add <b>.\n</think>\n\nIt is 4.\n", "I add <b>.", "It is 4.\n"),
    (False, "\n<think></think>4", "", "4"),
    (True, "\nlet me see </thin\n</think>\n4 </think>", "let me see </thin", "4 </think>"),
    (True, "never done </thi", "never done </thi", ""),
    (False, "No <think>thoughts</think>", "", "No <think>thoughts</think>"),
    (False, " <thin air", "", " <thin air"),
    (False, "<thi", "", "<thi"),
    (True, "", "", ""),
]


def read(form: MessageForm, pieces: list[str]) -> Parts:
    reader = form.reader()
    parts = [reader.push(piece, is_last=i == len(pieces) - 1) for i, piece in enumerate(pieces)]
    return Parts(
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        joined_calls(call for part in parts for call in part.calls),
    )


@pytest.mark.parametrize(("is_open", "said", "reasoning", "content"), CASES)
def test_reasoning_is_split_from_the_answer(is_open: bool, said: str, reasoning: str, content: str) -> None:
    form = MessageForm(has_reasoning=True, is_open=is_open)
    for size in range(1, len(said) + 2):
        pieces = [said[i : i + size] for i in range(0, len(said), size)] or [""]
        assert read(form, pieces) == Parts(content, reasoning), size


def test_reasoning_comes_before_calls_and_hides_none_of_them() -> None:
    said = f"<think>\nMaybe {CALL}?\n</think>\n\nSo:\n{CALL}"
    form = MessageForm(Hermes(), frozenset({"f"}), has_reasoning=True)
    for size in range(1, len(said)):
        parts = read(form, [said[i : i + size] for i in range(0, len(said), size)])
        assert (parts.reasoning, parts.content) == (f"Maybe {CALL}?", "So:")
        assert [(call.name, call.arguments) for call in parts.calls] == [("f", '{"a": 1}')]


def test_a_prompt_that_ends_in_the_marker_opens_the_reasoning() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n")
    assert not opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
