"""Conversations with tools told in words that the model's chat template takes.

To a template that takes no tools they are told in the system message, and calls and their results in the history as
text, in the format that the server parses. What such a template refuses is told otherwise, as the makers of models
without a system role or with strictly alternating turns advise; what it takes stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from server.text.chat_template import PROBE, ChatTemplate, Conversation
from server.text.tool_parsers.mistral import ID_LENGTH
from server.text.tool_parsers.tool_format import ToolFormat

Turn = dict[str, Any]
Way = Callable[[Sequence[Turn]], list[Turn]]

_SYSTEM = """\
You can call functions. Between <tools> and </tools>, each line describes one of them as JSON:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments in this form:
{example}"""
RESULT = "<tool_response>"


def told(conversation: Conversation, template: ChatTemplate, form: ToolFormat) -> Conversation:
    """Tools, calls and results as text; unchanged where there are none."""
    turns = [dict(turn) for turn in conversation.messages]
    if not conversation.tools and not any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        return conversation
    about = _about(conversation.tools, form)
    text = replace(conversation, tools=(), messages=_with_system([_as_text(turn, form) for turn in turns], about))
    return _first_shown(text, template, about, (_merged, _without_system, _one_voice))


def fitted(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """Calls and results as turns, for a template that takes tools but perhaps one call at a time or short ids."""
    return _first_shown(conversation, template, "", (_one_by_one, _short_ids, _short_and_single))


def tools_in(template: ChatTemplate, form: ToolFormat) -> str:
    """What shows tools to the model: chat_template, system_message or first_user_message."""
    if template.given(tools=True).takes_tools:
        return "chat_template"
    asked = Conversation([{"role": "user", "content": "x"}], tools=(PROBE,))
    first = told(asked, template, form).messages[0]
    return "system_message" if first["role"] == "system" else "first_user_message"


def _first_shown(conversation: Conversation, template: ChatTemplate, about: str, ways: Sequence[Way]) -> Conversation:
    """The first way that the template takes, none of them if it can be; it must not drop what the tools are."""
    turns = [dict(turn) for turn in conversation.messages]
    tried = (replace(conversation, messages=messages) for messages in (turns, *(way(turns) for way in ways)))
    takes = (each for each in tried if (prompt := template.shown(each)) is not None and about in prompt)
    return next(takes, conversation)


def _about(tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> str:
    """The tools in words; "" without any."""
    if not tools:
        return ""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write([{"name": "function's name", "arguments": {"argument's name": "value"}}])
    return _SYSTEM.format(tools=lines, example=example)


def _as_text(turn: Turn, form: ToolFormat) -> Turn:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"{RESULT}\n{turn['content']}\n</tool_response>"}
    if "tool_calls" not in turn:
        return turn
    calls = form.write([call["function"] for call in turn["tool_calls"]])
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    return rest | {"content": f"{turn['content']}\n{calls}" if turn["content"] else calls}


def _with_system(turns: list[Turn], text: str) -> list[Turn]:
    """The turns with a text in the system message."""
    if not text:
        return turns
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    return [_joined(turns[0], text), *turns[1:]]


def _merged(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of one role in a row as one: results of parallel calls, and what was said beside them."""
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = _joined(merged[-1], turn["content"])
        else:
            merged.append(turn)
    return merged


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """What the system says at the head of what the user says first."""
    first, *rest = turns
    if first["role"] != "system":
        return list(turns)
    if rest and rest[0]["role"] == "user":
        return [_joined(rest[0] | {"content": first["content"]}, rest[0]["content"]), *rest[1:]]
    return [{"role": "user", "content": first["content"]}, *rest]


def _one_voice(turns: Sequence[Turn]) -> list[Turn]:
    return _merged(_without_system(turns))


def _joined(turn: Turn, text: str) -> Turn:
    """Results stand close together, other texts a line apart."""
    gap = "\n" if text.startswith(RESULT) else "\n\n"
    return turn | {"content": f"{turn['content']}{gap}{text}" if turn["content"] else text}


def _one_by_one(turns: Sequence[Turn]) -> list[Turn]:
    """Calls that were made at once, each followed by its own result."""
    waiting, apart = deque(turns), list[Turn]()
    while waiting:
        turn = waiting.popleft()
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            apart.append(turn)
            continue
        results = list(takewhile(lambda each: each["role"] == "tool", waiting))
        for number, call in enumerate(calls):
            apart.append(turn | {"tool_calls": [call], "content": "" if number else turn["content"]})
            answers = [each for each in results if each["tool_call_id"] == call["id"]]
            apart += answers
            for answer in answers:
                waiting.remove(answer)
    return apart


def _short_ids(turns: Sequence[Turn]) -> list[Turn]:
    """Ids of another server's calls as long as Mistral's templates want them."""
    return [
        turn
        | ({"tool_call_id": _short(turn["tool_call_id"])} if "tool_call_id" in turn else {})
        | ({"tool_calls": [c | {"id": _short(c["id"])} for c in turn["tool_calls"]]} if "tool_calls" in turn else {})
        for turn in turns
    ]


def _short_and_single(turns: Sequence[Turn]) -> list[Turn]:
    return _short_ids(_one_by_one(turns))


def _short(call_id: str) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:ID_LENGTH]
