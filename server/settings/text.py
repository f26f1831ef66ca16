"""Settings as TOML text: the default file with every key described, and the effective values with their origin."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from server.settings.sections import SECTIONS
from server.settings.settings import ENV_PREFIX, LoadedSettings

_HEADER = f"""\
# Every setting of polydecode with its default: `polydecode default-config` writes this file.
# Each key is also an environment variable ({ENV_PREFIX}MAX_QUEUE) and a flag (--max-queue).
# Order: defaults < this file (--config FILE) < environment < flags. An unknown key is an error.
"""


def default_toml() -> str:
    """The file `configs/default.toml`."""
    return _HEADER + "".join(_section_text(section.__doc__ or "", section.model_fields) for section in SECTIONS)


def effective_toml(loaded: LoadedSettings) -> str:
    """What runs, and where each value came from; keys are masked."""
    return "\n".join(_effective_lines(loaded)) + "\n"


def _section_text(title: str, fields: dict[str, Any]) -> str:
    entries = [_entry(name, field.description, field.default) for name, field in fields.items()]
    return f"\n# {'-' * 8} {title} {'-' * (68 - len(title))}\n" + "".join(entries)


def _entry(name: str, description: str, default: object) -> str:
    comment = textwrap.fill(description, width=110, initial_indent="# ", subsequent_indent="# ")
    return f"\n{comment}\n{name} = {_toml(default)}\n"


def _effective_lines(loaded: LoadedSettings) -> Iterator[str]:
    for name in (name for section in SECTIONS for name in section.model_fields):
        line = f"{name} = {_toml(getattr(loaded.settings, name))}"
        yield f"{line:<44} # {loaded.origins[name]}"


def _toml(value: object) -> str:
    """Strings, numbers, booleans and lists of them look the same in TOML and JSON."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return "********" if isinstance(value, SecretStr) else value
