"""Tokens, and which of them are special, that a model's folder states beside tokenizer.json; read as transformers does.

Fine-tunes keep them in tokenizer_config.json (`added_tokens_decoder`, `eos_token` …) alone, older ones in
special_tokens_map.json and added_tokens.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from server.text.template_files import SPECIAL_TOKENS, read_json

_LISTS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_stated(tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    """Gives the tokenizer what the folder states. Raises ValueError on what cannot be such a file."""
    try:
        _add(tokenizer, read_json(directory / "tokenizer_config.json"), directory)
    except (TypeError, KeyError, AttributeError, ValueError):
        raise ValueError("the tokenizer's files name tokens that are none") from None


def _add(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], directory: Path) -> None:
    if "added_tokens_decoder" in config:
        stated = {int(token_id): _token(entry) for token_id, entry in config["added_tokens_decoder"].items()}
    else:
        config = config | read_json(directory / "special_tokens_map.json")
        stated = _older(config, read_json(directory / "added_tokens.json"))
        stated |= tokenizer.get_added_tokens_decoder()
    known = {str(token.content): token for token in stated.values()}
    named = [known.get(token.content, token) for token in _named(config)]
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    tokenizer.add_tokens([token for _, token in sorted(stated.items(), key=lambda pair: pair[0])])
    tokenizer.add_special_tokens([*(known[token] for token in special if token in known), *named])  # once, for ever


def _older(config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, AddedToken]:
    special = {token.content for token in _named(config)}
    return {
        token_id: AddedToken(token, normalized=token not in special, special=token in special)
        for token, token_id in ids.items()
    }


def _named(config: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Those that have a part to play, each special."""
    values = [config[name] for name in SPECIAL_TOKENS if config.get(name)]
    for name in _LISTS:
        more = config.get(name) or ()
        values += more.values() if isinstance(more, dict) else more
    for value in values:
        yield _token(value if isinstance(value, dict) else {"content": value, "normalized": False}, special=True)


def _token(entry: Mapping[str, Any], *, special: bool = False) -> AddedToken:
    flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
    return AddedToken(entry["content"], **(flags | ({"special": True} if special else {})))
