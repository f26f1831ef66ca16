"""The grammar that holds a chat's answer to calls of its functions: reasoning first, then calls, text or JSON."""

from __future__ import annotations

import json

from decoding.contract.grammars import with_form
from decoding.contract.params import Grammar, InvalidParam
from server.served import Served
from server.text.reasoning import BEGIN, END
from server.text.tool_parsers.tool_format import Literal
from server.translate.tool_use import ToolUse, arguments_of

ANYTHING = r"/(.|\n)*/"


def message_grammar(
    use: ToolUse | None, answer: Grammar | None, served: Served, *, is_thinking: bool
) -> Grammar | None:
    """What a message must match, None where anything goes. Raises InvalidParam.

    use: with schemas that can be enforced (`tool_use.enforced`). answer: the form that the request wants of the text.
    is_thinking: the prompt opens the reasoning.
    """
    if use is None and (answer is None or not served.has_reasoning or answer.kind != "json_schema"):
        return answer
    if use is not None and answer is None and not use.needs_grammar:
        return None
    literal = literals(served)
    lines = [f"start: {_thinking(literal, served, is_thinking)}said", *_said(use, answer, literal)]
    if served.has_reasoning:
        lines += ["thoughts: up_to_end SPACE", *_up_to("end", END, literal), r"SPACE: /\n{0,2}/"]
    return Grammar("lark", "\n".join(lines))


def _said(use: ToolUse | None, answer: Grammar | None, literal: Literal) -> list[str]:
    """The rule `said`: what comes behind the reasoning."""
    if use is None:
        return ["said: answer", *_answer(answer)]
    lead = use.form.LEAD
    calls = [f"calls: {use.form.rule(literal, is_single=use.is_single)}", *_functions(use)]
    if answer is not None:
        if use.is_forced or answer.kind != "json_schema":
            raise InvalidParam("tools", "have no meaning with this form of the answer: nothing can match both")
        return [f"said: answer | {literal(lead) if lead else ''} calls", *_answer(answer), *calls]
    if use.is_forced:
        return [f"said: {literal(lead) if lead else ''} calls", *calls]
    if not lead:
        return ["said: calls | TEXT", r"TEXT: /(\s*[^\s{](.|\n)*)?/", *calls]
    return [
        "said: TEXT | up_to_calls calls",
        f"TEXT: {_all_but(lead, literal)}",
        *_up_to("calls", lead, literal),
        *calls,
    ]


def _answer(answer: Grammar | None) -> list[str]:
    return [] if answer is None else [f"answer: %json {json.dumps(with_form(answer.text))}"]


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
        lines += [
            f"call_{i}: {_quoted(head)} arguments_{i} {_quoted('}')}",
            f"arguments_{i}: %json {json.dumps(with_form(json.dumps(arguments_of(tool))))}",
        ]
    return lines


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
