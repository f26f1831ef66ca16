"""Tokens and flags that stand beside tokenizer.json: ids and text as transformers has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from server.text.tokenizer import Tokenizer
from tests.server.fake_engine import byte_tokenizer

FIRST = byte_tokenizer().get_vocab_size()
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
TEXT = "a <|x|> b<|y|>  c <|im_end|>d<|im_start|>"

FOLDERS: dict[str, dict[str, Any]] = {
    "nothing beside it": {},
    "new tokens": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(FIRST): PLAIN | {"content": "<|x|>", "special": True},
                str(FIRST + 1): PLAIN | {"content": "<|y|>", "lstrip": True, "rstrip": True},
            }
        }
    },
    "other flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(FIRST - 2): PLAIN | {"content": "<|im_start|>"},
                str(FIRST - 1): PLAIN | {"content": "<|im_end|>", "lstrip": True, "special": True},
            }
        }
    },
    "a part to play": {
        "tokenizer_config.json": {
            "eos_token": "<|x|>",
            "pad_token": PLAIN | {"content": "<|y|>", "__type": "AddedToken"},
        }
    },
    "more parts": {"tokenizer_config.json": {"extra_special_tokens": ["<|x|>", "<|y|>"], "unk_token": None}},
    "an older file": {"special_tokens_map.json": {"eos_token": "<|x|>", "additional_special_tokens": ["<|y|>"]}},
    "two older files": {
        "special_tokens_map.json": {"eos_token": {"content": "<|x|>", "lstrip": True}},
        "added_tokens.json": {"<|y|>": FIRST, "<|x|>": FIRST + 1},
    },
}


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, name: str, is_special: bool) -> None:
    tokens = byte_tokenizer()
    tokens.add_tokens([AddedToken(token, special=is_special) for token in ("<|im_start|>", "<|im_end|>")])
    tokens.save(str(tmp_path / "tokenizer.json"))
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_text(json.dumps(content))
    reference, own = PreTrainedTokenizerFast.from_pretrained(tmp_path), Tokenizer.from_directory(tmp_path)
    ids = reference(TEXT)["input_ids"]
    assert list(own.encode(TEXT)) == ids
    for skip in (True, False):
        assert own.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize(
    "config", [{"added_tokens_decoder": {"x": {}}}, {"added_tokens_decoder": [1]}, {"eos_token": 5}]
)
def test_names_that_are_no_tokens_are_a_value_error(tmp_path: Path, config: dict[str, Any]) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="token"):
        Tokenizer.from_directory(tmp_path)
