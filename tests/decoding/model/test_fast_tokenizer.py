"""tokenizer.json for folders that have none: the same ids and the same text as transformers' own tokenizer gives."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from decoding.model.fast_tokenizer import with_tokenizer
from server.text.tokenizer import Tokenizer
from tests.decoding.model.vocabularies import TEXTS, m2m100, m2m100_of_unigrams, marian, mt5, opt

EDGES = ("", "  hello   world ", "日本 dog", "x<unk>y", "a</s> b", "Füße ß\tHut", ">>deu<< the dog", "jump zz!!qq the")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ignore(_: str, __: float) -> None:
    pass


def random_texts(count: int) -> list[str]:
    letters, generator = "abcdefghijkl zqöß.,!  日é\n\t", random.Random(7)
    return ["".join(generator.choices(letters, k=generator.randrange(1, 25))) for _ in range(count)]


@pytest.mark.parametrize("make", [marian, m2m100, m2m100_of_unigrams, mt5, opt])
def test_the_tokenizer_that_is_made_agrees_with_transformers(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "m")
    reference = AutoTokenizer.from_pretrained(folder)
    size = 1 + max([len(reference) - 1, *getattr(reference, "id_to_lang_token", ())])
    made = Tokenizer.from_directory(with_tokenizer(folder, ignore)).within(size)
    for text in (*EDGES, *TEXTS[:5], *random_texts(60)):
        assert list(made.encode(text)) == reference(text)["input_ids"], text
    generator = random.Random(3)
    for _ in range(60):
        ids = [generator.randrange(size) for _ in range(6)]
        assert made.decode(ids).strip() == reference.decode(ids, skip_special_tokens=True).strip()


def test_the_folder_is_read_through_links_and_made_anew_when_a_file_of_it_changes(tmp_path: Path) -> None:
    folder = opt(tmp_path / "m")
    first = with_tokenizer(folder, ignore)
    assert (first / "config.json").resolve() == folder / "config.json"
    made_at = os.stat(first / "tokenizer.json").st_mtime_ns
    assert with_tokenizer(folder, ignore) == first
    assert os.stat(first / "tokenizer.json").st_mtime_ns == made_at
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert with_tokenizer(folder, ignore) != first
    assert not (folder / "tokenizer.json").exists()


def test_what_no_tokenizer_can_be_made_of_is_said(tmp_path: Path) -> None:
    folder = mt5(tmp_path / "m")
    (folder / "spiece.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json, and none can be made of its vocabulary"):
        with_tokenizer(folder, ignore)
