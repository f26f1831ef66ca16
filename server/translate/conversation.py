"""A chat's wire fields -> what the chat template is given, and the prompt that it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from server.served import Served
from server.text.chat_template import ChatTemplate, Conversation
from server.text.retelling import Turn, fitted, told
from server.text.tool_parsers.hermes import Hermes
from server.translate.bounds import bad_field
from server.wire.chat import ConversationFields, Message, Tool, ToolCall

INLINE_WEIGHT = 1 << 14  # about a millisecond


async def chat_text(
    wire: ConversationFields, messages: Sequence[Message], tools: Sequence[Tool], served: Served
) -> str:
    """The prompt; a long conversation's is made in a thread. For those who hold a reservation. Raises ApiError 400."""

    def rendered() -> str:
        return served.tokenizer.chat_text(conversation(wire, messages, tools, served))

    is_light = _is_light((messages, tools, wire.documents, wire.chat_template_kwargs))
    return rendered() if is_light else await served.writing.run(rendered)


def _is_light(value: Any) -> bool:
    """Whether it is soon gone through: counts characters and values, and no more of them than it takes to know."""
    weight, inside = 0, [value]
    while inside and weight <= INLINE_WEIGHT:
        value = inside.pop()
        held = value.__dict__ if isinstance(value, BaseModel) else value
        weight += 8 + (len(held) if isinstance(held, str | dict | list | tuple) else 0)
        if weight <= INLINE_WEIGHT and not isinstance(held, str):
            inside.extend(held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else ())
    return weight <= INLINE_WEIGHT


def conversation(
    wire: ConversationFields, messages: Sequence[Message], tools: Sequence[Tool], served: Served
) -> Conversation:
    """Raises ApiError 400 on variables that the template does not have, and where there is nothing to continue."""
    whole = served.tokenizer.template
    template = whole.given(tools=bool(tools), documents=bool(wire.documents)) if whole is not None else None
    _check_variables(wire, template)
    _check_documents(wire, template)
    turns = [_turn(message, template) for message in messages]
    shown = [tool.model_dump(exclude_none=True) for tool in tools]
    asked = Conversation(
        messages=turns,
        tools=shown,
        documents=wire.documents or (),
        variables=wire.chat_template_kwargs or {},
        add_generation_prompt=_adds_generation_prompt(wire),
        is_open=_is_open(wire, messages),
    )
    if template is None:
        return asked
    if template.takes_tools:
        has_calls = any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns)
        return fitted(asked, template) if has_calls else asked
    return told(asked, template, served.tools or Hermes())


def _turn(message: Message, template: ChatTemplate | None) -> Turn:
    """One message as templates know it."""
    turn = message.model_dump(include={"role", "name", "tool_call_id"}, exclude_none=True)
    turn["content"] = message.said
    if message.thought is not None:
        turn["reasoning_content"] = message.thought
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
        value = from_json(text, allow_inf_nan=False)  # which bounds how deep it is nested
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _check_variables(wire: ConversationFields, template: ChatTemplate | None) -> None:
    known = template.variables if template is not None else frozenset[str]()
    for name in wire.chat_template_kwargs or ():
        if name not in known:
            there = f"it has {', '.join(sorted(known))}" if known else "it has none"
            problem = f"names '{name[:100]}', a variable that the chat template does not have; {there}"
            raise bad_field("chat_template_kwargs", problem)


def _check_documents(wire: ConversationFields, template: ChatTemplate | None) -> None:
    if wire.documents and not (template and template.takes_documents):
        raise bad_field("documents", "has no meaning: the model's chat template does not show documents")


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
