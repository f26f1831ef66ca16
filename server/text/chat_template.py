"""The model's chat template, run in jinja2's immutable sandbox with the helpers that Hugging Face templates expect.

The template is part of the model, or the operator's, and is trusted to end; messages, tools and variables are the
client's and reach it as data only. Before the server makes one of these, `template_trial.py` has seen it end.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import ApiError
from server.text.template_files import DEFAULT, SPECIAL_TOKENS, read_template, special_tokens, template_sources
from server.worker.model_files import ModelError

PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "A probe.", "parameters": {"type": "object", "properties": {}}},
}
NAMED = ("tool_use", "rag")
PROBED_DOCUMENT = {"title": "probe", "text": "A probe."}
FAULTS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What a template raises that cannot take what it is given."""


class Refused(jinja2.TemplateError):
    """The template called raise_exception."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given. variables: of the template's own; is_open: the answer continues the last message."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    is_open: bool = False


class ChatTemplate:
    """Messages -> the prompt's text, special tokens included. Raises ValueError if the source is no template.

    named: the model's other templates, of which `tool_use` is rendered where tools are given, and `rag` for documents.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], named: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._named = {name: ChatTemplate(named[name], special_tokens) for name in NAMED if named and name in named}
        self._special_tokens = dict(special_tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.message}") from None
        except (SyntaxError, RecursionError):  # of the Python that jinja2 makes of it
            raise ValueError("it is nested too deeply") from None
        given = {"messages", "tools", "documents", "add_generation_prompt", *SPECIAL_TOKENS}
        self.variables = frozenset(names - given - environment.globals.keys())
        one = Conversation([{"role": "user", "content": "x"}])
        self.takes_tools = self._differ("tools", one, replace(one, tools=(PROBE,)))
        self.takes_documents = self._differ("documents", one, replace(one, documents=(PROBED_DOCUMENT,)))

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate | None:
        """With the other templates beside the default one; None if the model has none."""
        sources = template_sources(directory)
        source = sources.pop(DEFAULT, None)
        return None if source is None else cls(source, special_tokens(directory), sources)

    @classmethod
    def from_file(cls, file: Path, directory: Path) -> ChatTemplate:
        """From a file of the operator's, with the special tokens of the model in `directory`. Raises ModelError."""
        source = read_template(file)
        try:
            return cls(source, special_tokens(directory))
        except ValueError as error:
            raise ModelError(f"{file} is not a chat template: {error}") from None

    def given(self, *, tools: bool, documents: bool = False) -> ChatTemplate:
        """The one that transformers renders where these are given."""
        tool_use, rag = self._named.get("tool_use"), self._named.get("rag")
        if tools and tool_use is not None and tool_use.takes_tools:
            return tool_use
        if documents and not tools and rag is not None and rag.takes_documents:
            return rag
        return self

    @property
    def all(self) -> tuple[ChatTemplate, ...]:
        """This one and those beside it."""
        return (self, *self._named.values())

    @property
    def has_reasoning(self) -> bool:
        return "</think>" in self.source or any(other.has_reasoning for other in self._named.values())

    @property
    def knows_developer(self) -> bool:
        return "developer" in self.source

    def render(self, conversation: Conversation) -> str:
        """Raises ApiError 400 when the template refuses the messages."""
        chosen = self.given(tools=bool(conversation.tools), documents=bool(conversation.documents))
        if chosen is not self:
            return chosen.render(conversation)
        if not conversation.is_open:
            return self._render(conversation)
        mark = secrets.token_hex(16)
        *before, last = conversation.messages
        marked = [*before, {**last, "content": f"{last['content']}{mark}"}]
        text, found, _ = self._render(replace(conversation, messages=marked)).partition(mark)
        if not found:
            message = "cannot be continued: the model's chat template does not show the last message as it is"
            raise ApiError(400, f"continue_final_message {message}", param="continue_final_message")
        return text

    def shown(self, conversation: Conversation) -> str | None:
        """The prompt; None where the template refuses the messages."""
        try:
            return self.render(conversation)
        except ApiError:
            return None

    def _differ(self, name: str, one: Conversation, other: Conversation) -> bool:
        """Whether what `other` has makes any difference to a prompt."""
        return name in self.source and self.shown(one) != (shown := self.shown(other)) and shown is not None

    def _render(self, conversation: Conversation) -> str:
        try:
            return self._template.render(
                {
                    **self._special_tokens,
                    **conversation.variables,
                    "messages": [dict(message) for message in conversation.messages],
                    "add_generation_prompt": conversation.add_generation_prompt,
                    "tools": list(conversation.tools) or None,
                    "documents": list(conversation.documents) or None,
                }
            )
        except Refused as refused:
            raise ApiError(400, self._explained(str(refused)), param="messages") from None
        except FAULTS:
            raise ApiError(400, "the model's chat template cannot take these messages", param="messages") from None

    def _explained(self, reason: str) -> str:
        """The template's own words, unless they were made from the input."""
        text = "the model's chat template refuses these messages"
        return f"{text}: {reason}" if reason and reason in self.source else text


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here it only passes them on."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain set

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
