"""A chat's wire fields -> what the chat template is given.

To a template that takes no tools they are told in the system message, and calls and their results in the history as
text, in the format that the server parses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.bounds import bad_field
from server.chat_fields import ConversationFields, Message, Tool, ToolCall
from server.chat_template import ChatTemplate, Conversation
from server.served import Served
from server.tool_parsers.hermes import Hermes
from server.tool_parsers.tool_format import ToolFormat

Turn = dict[str, Any]

_SYSTEM = """\
You can call functions. Between <tools> and </tools>, each line describes one of them as JSON:
<tools>
{tools}
</tools>
To call a function, answer with its name and its arguments in this form:
{example}"""


def conversation(
    wire: ConversationFields, messages: Sequence[Message], tools: Sequence[Tool], served: Served
) -> Conversation:
    """Raises ApiError 400 on variables that the template does not have, and where there is nothing to continue."""
    template = served.tokenizer.template
    _check_variables(wire, template)
    turns = [_turn(message, template) for message in messages]
    shown = [tool.model_dump(exclude_none=True) for tool in tools]
    if template is not None and not template.takes_tools:
        form = served.tools or Hermes()
        turns = _told(shown, [_as_text(turn, form) for turn in turns], form)
        shown = []
    return Conversation(
        messages=turns,
        tools=shown,
        variables=wire.chat_template_kwargs or {},
        add_generation_prompt=_adds_generation_prompt(wire),
        is_open=_is_open(wire, messages),
    )


def _turn(message: Message, template: ChatTemplate | None) -> Turn:
    """One message as templates know it."""
    turn = message.model_dump(include={"role", "name", "tool_call_id", "reasoning_content"}, exclude_none=True)
    turn["content"] = message.content or ""
    if message.role == "developer" and not (template and template.knows_developer):
        turn["role"] = "system"
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: ToolCall) -> Turn:
    called = {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": called}


def _arguments(text: str) -> Any:
    """Templates write the object; what is none, such as arguments that were cut off, stays as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _as_text(turn: Turn, form: ToolFormat) -> Turn:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    if "tool_calls" not in turn:
        return turn
    calls = form.write([call["function"] for call in turn["tool_calls"]])
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    return rest | {"content": f"{turn['content']}\n{calls}" if turn["content"] else calls}


def _told(tools: Sequence[Mapping[str, Any]], turns: list[Turn], form: ToolFormat) -> list[Turn]:
    """The turns with the tools described in the system message."""
    if not tools:
        return turns
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = form.write([{"name": "function's name", "arguments": {"argument's name": "value"}}])
    text = _SYSTEM.format(tools=lines, example=example)
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    return [turns[0] | {"content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]


def _check_variables(wire: ConversationFields, template: ChatTemplate | None) -> None:
    known = template.variables if template is not None else frozenset[str]()
    for name in wire.chat_template_kwargs or ():
        if name not in known:
            there = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise bad_field("chat_template_kwargs", f"names a variable that the chat template does not have; {there}")


def _adds_generation_prompt(wire: ConversationFields) -> bool:
    if wire.continue_final_message and wire.add_generation_prompt:
        raise bad_field("continue_final_message", "has no meaning with add_generation_prompt")
    return wire.add_generation_prompt is not False and not wire.continue_final_message


def _is_open(wire: ConversationFields, messages: Sequence[Message]) -> bool:
    if not wire.continue_final_message:
        return False
    if messages[-1].role != "assistant" or messages[-1].tool_calls:
        raise bad_field("continue_final_message", "needs a last message of the assistant without tool_calls")
    return True
