"""Which chat template a folder has, against transformers' own reading of the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from server.text.chat_template import ChatTemplate, Conversation
from server.text.template_files import template_sources
from tests.server.fake_engine import byte_tokenizer

TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
SAID = [{"role": "user", "content": "hi"}]


def by_names(**sources: str) -> list[dict[str, str]]:
    return [{"name": name, "template": source} for name, source in sources.items()]


def source(place: str) -> str:
    """Shows where it stood, and tools and documents."""
    return place + "{{ tools | tojson if tools }}{{ documents | tojson if documents }}{{ messages[0].content }}"


PLACES: dict[str, tuple[Any, dict[str, str]]] = {
    "a string": (source("config"), {}),
    "a list": (by_names(default=source("config"), tool_use=source("tools"), rag=source("rag")), {}),
    "a file goes before the config": (source("config"), {"chat_template.jinja": source("file")}),
    "files in a folder": (
        None,
        {"chat_template.jinja": source("file"), "additional_chat_templates/tool_use.jinja": source("folder")},
    ),
    "files in a folder go before a list": (
        by_names(default=source("config"), tool_use=source("tools")),
        {"chat_template.jinja": source("file"), "additional_chat_templates/tool_use.jinja": source("folder")},
    ),
}


def folder(directory: Path, config: Any, files: dict[str, str]) -> Path:
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({} if config is None else {"chat_template": config})
    (directory / "tokenizer_config.json").write_text(json.dumps(told))
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("tools", [(), (TOOL,)], ids=["without tools", "with tools"])
@pytest.mark.parametrize(("config", "files"), PLACES.values(), ids=PLACES.keys())
def test_the_template_is_the_one_that_transformers_renders(
    tmp_path: Path, config: Any, files: dict[str, str], tools: tuple[Any, ...]
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder(tmp_path, config, files))
    ours = ChatTemplate.from_directory(tmp_path)
    assert ours is not None
    expected = theirs.apply_chat_template(SAID, tools=list(tools) or None, tokenize=False)
    assert ours.render(Conversation(SAID, tools=tools, add_generation_prompt=False)) == expected


def test_a_template_for_documents_is_rendered_as_transformers_does_by_its_name(tmp_path: Path) -> None:
    config, files = PLACES["a list"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder(tmp_path, config, files))
    documents = [{"title": "t", "text": "x"}]
    expected = theirs.apply_chat_template(SAID, chat_template="rag", documents=documents, tokenize=False)
    ours = ChatTemplate.from_directory(tmp_path)
    assert ours is not None
    assert ours.render(Conversation(SAID, documents=documents, add_generation_prompt=False)) == expected


@pytest.mark.parametrize("held", ["plain", {"default": "plain"}, by_names(default="plain")])
def test_a_processors_file_is_read_where_there_is_nothing_else(tmp_path: Path, held: Any) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": held}))
    assert template_sources(tmp_path) == {"default": "plain"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert template_sources(tmp_path) == {"default": "config"}


@pytest.mark.parametrize("held", [7, [7, {"name": "default"}], {"default": 7}, None])
def test_what_is_no_template_is_none(tmp_path: Path, held: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": held}))
    assert ChatTemplate.from_directory(tmp_path) is None
