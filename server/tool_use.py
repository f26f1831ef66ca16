"""What a request's tool fields come to: the functions shown to the model, and the grammar that holds it to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from decoding.grammars import JSON_FORM, InvalidGrammar, compile_grammar, read_tokens
from decoding.params import Grammar
from server.chat_fields import NamedChoice, Tool
from server.errors import ApiError
from server.limits import Limits
from server.protocol import ChatRequest
from server.reasoning import BEGIN, END
from server.served import Served
from server.tool_parsers.tool_format import Literal, ToolFormat

ANYTHING = r"/(.|\n)*/"
if TYPE_CHECKING:
    from llguidance import LLTokenizer

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


def check_tools(wire: ChatRequest, limits: Limits) -> None:
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
        if not _is_schema(tool, limits):
            message = f"tools[{i}].function.parameters must be the JSON schema of an object"
            raise ApiError(400, f"{message}, at most {limits.max_param_chars} characters long", param="tools")


def tool_grammar(use: ToolUse, served: Served, *, is_thinking: bool) -> Grammar | None:
    """What the answer must match, None where anything goes. is_thinking: the prompt opens the reasoning."""
    if not use.needs_grammar:
        return None
    literal, lead = literals(served), use.form.LEAD
    calls = f"{literal(lead)} calls" if lead else "calls"
    lines = [f"start: {_thinking(literal, served, is_thinking)}{calls if use.is_forced else 'calls_or_text'}"]
    if not use.is_forced:
        lines += _free_text(lead, literal)
    lines += [f"calls: {use.form.rule(literal, is_single=use.is_single)}", *_functions(use)]
    lines += (
        ["thoughts: up_to_end SPACE", *_up_to("end", END, literal), r"SPACE: /\n{0,2}/"] if served.has_reasoning else []
    )
    return Grammar("lark", "\n".join(lines))


def _is_schema(tool: Tool, limits: Limits) -> bool:
    """Whether the arguments could be held to it."""
    text = _schema(tool)
    if (
        len(text) > limits.max_param_chars
        or (tool.function.parameters or NO_ARGUMENTS).get("type", "object") != "object"
    ):
        return False
    try:
        compile_grammar(Grammar("lark", f"start: %json {text}"), _bytes())
    except InvalidGrammar:
        return False
    return True


@cache
def _bytes() -> LLTokenizer:
    """The smallest vocabulary: whether a schema is sound does not depend on it."""
    return read_tokens([bytes([i]) for i in range(256)], {}, [256])


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
    return json.dumps({"type": "object", **parameters, "x-guidance": JSON_FORM}, ensure_ascii=False)


def _free_text(lead: str, literal: Literal) -> list[str]:
    """Text that begins no call, or calls, or one behind the other where the format has that."""
    if not lead:
        return ["calls_or_text: calls | TEXT", r"TEXT: /(\s*[^\s{](.|\n)*)?/"]
    return [
        "calls_or_text: TEXT | up_to_calls calls",
        f"TEXT: {_all_but(lead, literal)}",
        *_up_to("calls", lead, literal),
    ]


def _thinking(literal: Literal, served: Served, is_thinking: bool) -> str:
    if not served.has_reasoning:
        return ""
    return "thoughts " if is_thinking else f"({literal(BEGIN)} thoughts)? "


def _up_to(name: str, marker: str, literal: Literal) -> list[str]:
    """The rule `up_to_name`: any text, the marker and no more."""
    if literal(marker).startswith("<["):
        return [f"up_to_{name}: BEFORE_{name.upper()} {literal(marker)}", f"BEFORE_{name.upper()}: {ANYTHING}"]
    return [f"up_to_{name}[suffix={literal(marker)}]: {ANYTHING}"]


def _all_but(marker: str, literal: Literal) -> str:
    """Any text without the marker; a special token is never part of a text."""
    if literal(marker).startswith("<["):
        return ANYTHING
    escaped = "".join(f"\\{char}" if char in "[]()/|" else char for char in marker)
    return f"{ANYTHING} & ~/(.|\\n)*{escaped}(.|\\n)*/"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
