"""A chat template that does not come to an end costs the start a line, neither the server nor the machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.text.chat_template import ChatTemplate
from server.text.template_trial import SECONDS, problem_of, try_file, try_folder
from server.worker.model_files import ModelError

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
ENDLESS = LOOP + "{% endfor %}{% endfor %}"
TOO_MUCH = {
    "in every chat": ENDLESS,
    "where tools are": "{% if tools %}" + ENDLESS + "{% endif %}",
    "where there was an answer": "{% if messages | length > 2 %}" + ENDLESS + "{% endif %}",
    "while it is compiled": "{{ 9 ** (9 ** 9) }}",
    "memory": "{{ 'x' * 10000000000 }}{{ messages }}",
    "memory as it grows": "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
}


@pytest.mark.parametrize("source", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_a_template_that_takes_too_much_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(ModelError, match=rf"the model's chat template takes more than {SECONDS:g} seconds or 1 GiB"):
        try_folder(tmp_path)


def test_so_are_those_beside_the_default_and_the_operator_s(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text(ENDLESS)
    with pytest.raises(ModelError, match="takes more than"):
        try_folder(tmp_path)
    with pytest.raises(ModelError, match=r"rag\.jinja takes more than"):
        try_file(tmp_path / "additional_chat_templates" / "rag.jinja")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% if %}", "is none: line 1: "),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "is none: it is nested too deeply"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "is none: it is nested too deeply"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", None),
        ("{{ 1 // 0 }}", None),
        ("{{ raise_exception('no') }}", None),
        ("{{ bos_token }}{{ messages[0].content }}", None),
    ],
)
def test_what_is_none_is_refused_and_what_takes_no_chat_is_not(source: str, problem: str | None) -> None:
    found = problem_of({"default": source}, {"bos_token": "<s>"})
    assert found == problem or (problem is not None and found is not None and found.startswith(problem))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "chat_template.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=rf"the model's {name} (cannot be read|is nested too deeply)"):
        try_folder(tmp_path)
    with pytest.raises(ModelError, match=name):
        ChatTemplate.from_directory(tmp_path)


@pytest.mark.parametrize("is_pipe", [True, False])
def test_a_template_is_a_file_of_moderate_size(tmp_path: Path, is_pipe: bool) -> None:
    file = tmp_path / "chat_template.jinja"
    if is_pipe:
        os.mkfifo(file)
    else:
        with file.open("wb") as opened:
            opened.truncate(1 << 33)
    for attempt in (try_folder, lambda folder: try_file(folder / file.name)):
        with pytest.raises(ModelError, match=rf"{file.name}: (not a regular file|larger than 4 MiB)"):
            attempt(tmp_path)


def test_without_a_template_there_is_nothing_to_try(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "x"}))
    try_folder(tmp_path)
