"""What a request's tool fields come to: the functions shown to the model, and the grammar that holds it to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.params import Grammar
from server.chat_fields import NamedChoice, Tool
from server.errors import ApiError
from server.protocol import ChatRequest
from server.reasoning import BEGIN, END
from server.served import Served
from server.tool_parsers.tool_format import Literal, ToolFormat

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """tools: those that may be called. is_forced: the answer is calls; is_single: at most one."""

    form: ToolFormat
    tools: Sequence[Tool]
    is_forced: bool
    is_single: bool

    @property
    def functions(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools)

    @property
    def needs_grammar(self) -> bool:
        return self.is_forced or self.is_single or any(tool.function.strict for tool in self.tools)


def tool_use(wire: ChatRequest, served: Served) -> ToolUse | None:
    """None where no tool may be called. Raises ApiError 400 where the server could not tell a call."""
    if not may_call(wire):
        return None
    if served.tools is None:
        message = "tools are not supported: how this model writes calls is not known, and --tool-parser does not say"
        raise ApiError(400, message, param="tools", code="unsupported_field")
    choice, tools = wire.tool_choice, wire.tools or []
    if isinstance(choice, NamedChoice):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        return ToolUse(served.tools, named, is_forced=True, is_single=True)
    is_single = wire.parallel_tool_calls is False
    return ToolUse(served.tools, tools, is_forced=choice == "required", is_single=is_single)


def may_call(wire: ChatRequest) -> bool:
    return bool(wire.tools) and wire.tool_choice != "none"


def check_tools(wire: ChatRequest) -> None:
    """What is wrong whatever the model is. Raises ApiError 400."""
    names = [tool.function.name for tool in wire.tools or ()]
    choice = wire.tool_choice
    if len(set(names)) < len(names):
        raise ApiError(400, "tools must not name a function twice", param="tools")
    if choice not in (None, "none", "auto") and not names:
        raise ApiError(400, "tool_choice has no meaning without tools", param="tool_choice")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise ApiError(400, "tool_choice names a function that tools does not have", param="tool_choice")
    for i, tool in enumerate(wire.tools or ()):
        kind = (tool.function.parameters or NO_ARGUMENTS).get("type", "object")
        if kind != "object":
            raise ApiError(400, f"tools[{i}].function.parameters must be the schema of an object", param="tools")


def tool_grammar(use: ToolUse, served: Served, *, is_thinking: bool) -> Grammar | None:
    """What the answer must match, None where anything goes. is_thinking: the prompt opens the reasoning."""
    if not use.needs_grammar:
        return None
    literal = literals(served)
    lines = [f"start: {_thinking(literal, served, is_thinking)}{'calls' if use.is_forced else 'calls_or_text'}"]
    if not use.is_forced:
        lines += _free_text(use.form, literal)
    lines += [f"calls: {use.form.rule(literal, is_single=use.is_single)}", *_functions(use)]
    lines += _thoughts(literal) if served.has_reasoning else []
    return Grammar("lark", "\n".join(lines))


def literals(served: Served) -> Literal:
    def literal(text: str) -> str:
        token_id = served.tokenizer.special_id(text)
        return _quoted(text) if token_id is None else f"<[{token_id}]>"

    return literal


def _functions(use: ToolUse) -> list[str]:
    """The rule `call`: one object for each function. Schemas stay whole, for references point to their roots."""
    lines = ["call: " + " | ".join(f"call_{i}" for i in range(len(use.tools)))]
    for i, tool in enumerate(use.tools):
        head = f'{{"name": {json.dumps(tool.function.name)}, "{use.form.ARGUMENTS}": '
        lines += [f"call_{i}: {_quoted(head)} arguments_{i} {_quoted('}')}", f"arguments_{i}: %json {_schema(tool)}"]
    return lines


def _schema(tool: Tool) -> str:
    parameters: dict[str, Any] = tool.function.parameters or NO_ARGUMENTS
    return json.dumps({"type": "object", **parameters}, ensure_ascii=False)


def _free_text(form: ToolFormat, literal: Literal) -> list[str]:
    """Text that begins no call, or calls, or one behind the other where the format has that."""
    if not form.LEAD:
        return ["calls_or_text: calls | TEXT", r"TEXT: /(\s*[^\s{](.|\n)*)?/"]
    return ["calls_or_text: TEXT | TEXT calls", f"TEXT: {_all_but(form.LEAD, literal)}"]


def _thinking(literal: Literal, served: Served, is_thinking: bool) -> str:
    if not served.has_reasoning:
        return ""
    return "thoughts " if is_thinking else f"({literal(BEGIN)} thoughts)? "


def _thoughts(literal: Literal) -> list[str]:
    return [f"thoughts: THOUGHTS {literal(END)} SPACE", f"THOUGHTS: {_all_but(END, literal)}", r"SPACE: /\n{0,2}/"]


def _all_but(marker: str, literal: Literal) -> str:
    """Any text without the marker; a special token is never part of a text."""
    anything = r"/(.|\n)*/"
    if literal(marker).startswith("<["):
        return anything
    escaped = "".join(f"\\{char}" if char in "[]()/|" else char for char in marker)
    return f"{anything} & ~/(.|\\n)*{escaped}(.|\\n)*/"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
