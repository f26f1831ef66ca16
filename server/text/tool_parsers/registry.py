"""The formats there are, by name, and which of them a chat template teaches. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from server.text.chat_template import ChatTemplate
from server.text.tool_parsers.hermes import Hermes
from server.text.tool_parsers.llama3_json import Llama3Json
from server.text.tool_parsers.mistral import Mistral
from server.text.tool_parsers.tool_format import ToolFormat

FORMATS: Mapping[str, ToolFormat] = {each.NAME: each for each in (Mistral(), Hermes(), Llama3Json())}


def taught_by(template: str) -> ToolFormat | None:
    """The first format that the template's text shows."""
    return next((each for each in FORMATS.values() if each.is_in(template)), None)


def chosen(asked: str, template: ChatTemplate | None) -> ToolFormat | None:
    """asked: a name, "auto" or "none". A template that takes no tools leaves the choice to us: hermes."""
    if asked != "auto":
        return FORMATS.get(asked)
    if template is None:
        return None
    rendered = template.given(tools=True)
    return taught_by(rendered.source) if rendered.takes_tools else Hermes()
