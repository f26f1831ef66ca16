"""What a request's tool fields come to: which functions may be called, how, and whether their schemas hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from decoding.contract.params import InvalidParam
from server.errors import ApiError
from server.served import Served
from server.settings.limits import Limits
from server.text.tool_parsers.tool_format import ToolFormat
from server.translate.schema_fit import enforceable
from server.translate.structure import check_ending, check_schema
from server.wire.chat import AllowedTools, NamedChoice, Tool
from server.wire.requests import ChatRequest

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


def effective_tools(wire: ChatRequest) -> dict[str, Any]:
    """For `decoding.effective`: how the tools could be called."""
    choice = wire.tool_choice or "auto"
    said: dict[str, Any] = {"tool_choice": choice.model_dump() if isinstance(choice, NamedChoice) else choice}
    return said | ({"parallel_tool_calls": False} if wire.parallel_tool_calls is False else {})


def with_allowed_tools(wire: ChatRequest) -> ChatRequest:
    """Of the tools those that tool_choice allows: the model is shown no others. Raises ApiError 400."""
    choice = wire.tool_choice
    if not isinstance(choice, AllowedTools):
        return wire
    names = {tool.function.name for tool in choice.allowed_tools.tools}
    tools = [tool for tool in wire.tools or () if tool.function.name in names]
    if {tool.function.name for tool in tools} != names:
        raise ApiError(400, "tool_choice names a function that tools does not have", param="tool_choice")
    return wire.model_copy(update={"tools": tools, "tool_choice": choice.allowed_tools.mode})


def may_call(wire: ChatRequest) -> bool:
    return bool(wire.tools) and wire.tool_choice != "none"


def check_tools(wire: ChatRequest, limits: Limits) -> None:
    """What is wrong whatever the model is. Raises InvalidParam."""
    names = [tool.function.name for tool in wire.tools or ()]
    choice = wire.tool_choice
    if len(names) > limits.max_tools:
        raise InvalidParam("tools", f"must have at most {limits.max_tools} entries")
    if len(set(names)) < len(names):
        raise InvalidParam("tools", "must not name a function twice")
    if choice not in (None, "none", "auto") and not names:
        raise InvalidParam("tool_choice", "has no meaning without tools")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise InvalidParam("tool_choice", "names a function that tools does not have")
    for i, tool in enumerate(wire.tools or ()):
        check_schema(_field(i), tool.function.parameters or {}, limits)
        if (tool.function.parameters or {}).get("type", "object") != "object":
            raise InvalidParam(_field(i), "must be the schema of an object")


async def enforced(use: ToolUse, served: Served) -> ToolUse:
    """Its tools with what can be enforced of their schemas. Raises InvalidParam where a strict one cannot be."""
    check_ending("tools", served)
    tools = []
    for i, tool in enumerate(use.tools):
        schema = await enforceable(_field(i), arguments_of(tool), served, is_strict=bool(tool.function.strict))
        tools.append(tool.model_copy(update={"function": tool.function.model_copy(update={"parameters": schema})}))
    return replace(use, tools=tools)


def arguments_of(tool: Tool) -> dict[str, Any]:
    """With strict, all of it must be enforceable; otherwise what can be enforced is."""
    form = {} if tool.function.strict else {"x-guidance": {"lenient": True}}
    return {"type": "object", **(tool.function.parameters or NO_ARGUMENTS), **form}


def _field(i: int) -> str:
    return f"tools[{i}].function.parameters"
