"""The chat templates of a model's folder, by name, wherever their makers keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEFAULT = "default"
FOLDER = "additional_chat_templates"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def template_sources(directory: Path) -> dict[str, str]:
    """Files go before what tokenizer_config.json holds, as in transformers; a processor's chat_template.json is last.

    Beside the default there may be tool_use and rag.
    """
    return (
        _named(read_json(directory / "chat_template.json").get("chat_template"))
        | _named(read_json(directory / "tokenizer_config.json").get("chat_template"))
        | _files(directory)
    )


def special_tokens(directory: Path) -> dict[str, str]:
    """bos_token, eos_token …, as the tokenizer's files name them."""
    values = {**read_json(directory / "special_tokens_map.json"), **read_json(directory / "tokenizer_config.json")}
    tokens = {name: values[name] for name in SPECIAL_TOKENS if values.get(name) is not None}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


def read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return value if isinstance(value, dict) else {}


def _files(directory: Path) -> dict[str, str]:
    files = {file.stem: file for file in (directory / FOLDER).glob("*.jinja")}
    if (directory / "chat_template.jinja").is_file():
        files[DEFAULT] = directory / "chat_template.jinja"
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


def _named(template: object) -> dict[str, str]:
    """One template, an object of them by name, or a list of objects that each have a name."""
    if isinstance(template, str):
        return {DEFAULT: template}
    if isinstance(template, dict):
        return {name: source for name, source in template.items() if isinstance(source, str)}
    entries = [entry for entry in template if isinstance(entry, dict)] if isinstance(template, list) else []
    return {entry["name"]: entry["template"] for entry in entries if {"name", "template"} <= entry.keys()}
