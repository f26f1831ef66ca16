"""The chat templates of a model's folder, by name, wherever their makers keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.settings.regular_file import MAX_TEXT, read_regular
from server.worker.model_files import ModelError, read_object

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
    """The object in a file; an empty one where there is no file. Raises ModelError."""
    return read_object(file) or {}


def read_template(file: Path) -> str:
    """The text of a file. Raises ModelError."""
    try:
        return read_regular(file, MAX_TEXT).decode()
    except OSError as error:
        raise ModelError(f"cannot read the chat template {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ModelError(f"the chat template {file} is not UTF-8") from None


def _files(directory: Path) -> dict[str, str]:
    files = {file.stem: file for file in (directory / FOLDER).glob("*.jinja")}
    if (directory / "chat_template.jinja").exists():
        files[DEFAULT] = directory / "chat_template.jinja"
    return {name: read_template(file) for name, file in files.items()}


def _named(template: object) -> dict[str, str]:
    """One template, an object of them by name, or a list of objects that each have a name."""
    if isinstance(template, str):
        return {DEFAULT: template}
    if isinstance(template, dict):
        return {name: source for name, source in template.items() if isinstance(source, str)}
    entries = [entry for entry in template if isinstance(entry, dict)] if isinstance(template, list) else []
    return {entry["name"]: entry["template"] for entry in entries if {"name", "template"} <= entry.keys()}
