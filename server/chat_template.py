"""The model's chat template, run in jinja2's immutable sandbox with the helpers that Hugging Face templates expect.

The template is part of the model and is trusted to end; the messages are the client's and reach it as data only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.parser
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import ApiError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Refused(jinja2.TemplateError):
    """The template called raise_exception."""


class ChatTemplate:
    """Messages -> the prompt's text, special tokens included."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._template = _environment().from_string(source)

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate | None:
        """From chat_template.jinja or tokenizer_config.json; None if the model has no template."""
        config = _read_json(directory / "tokenizer_config.json")
        file = directory / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else _default(config.get("chat_template"))
        return None if source is None else cls(source, special_tokens(directory))

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Raises ApiError 400 when the template refuses the messages."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except Refused as refused:
            raise ApiError(400, self._explained(str(refused)), param="messages") from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, OverflowError):
            raise ApiError(400, "the model's chat template cannot take these messages", param="messages") from None

    def _explained(self, reason: str) -> str:
        """The template's own words, unless they were made from the input."""
        text = "the model's chat template refuses these messages"
        return f"{text}: {reason}" if reason and reason in self._source else text


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


def _read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return value if isinstance(value, dict) else {}


def _default(template: object) -> str | None:
    """tokenizer_config.json holds one template or a list of named ones."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def special_tokens(directory: Path) -> dict[str, str]:
    """bos_token, eos_token …, as the tokenizer's files name them."""
    values = {**_read_json(directory / "special_tokens_map.json"), **_read_json(directory / "tokenizer_config.json")}
    tokens = {name: values[name] for name in SPECIAL_TOKENS if values.get(name) is not None}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
