"""text_offset: the character at which each token begins, in echoed texts and ids, special and multi-byte tokens."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import processors

from server.served import Served
from server.text.tokenizer import Tokenizer
from tests.server.fake_engine import byte_tokenizer

TEXT = "the lazy dog. 日本語 🙂 <|im_start|>user, über  alles"


def assert_offsets(tokens: list[str], offsets: list[int], text: str) -> None:
    """A token that is text stands at its offset; the bytes of one character all stand where it begins."""
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        if token.startswith("bytes:"):
            piece = bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
            assert piece in text[offset : offset + 2].encode(), (token, offset)
        else:
            assert text.startswith(token, offset), (token, offset)


async def test_echoed_text_says_where_each_token_begins(client: httpx.AsyncClient) -> None:
    fields = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 20}
    choice = (await client.post("/v1/completions", json=fields)).json()["choices"][0]
    scored = choice["logprobs"]
    num_told = sum(offset < len(choice["text"]) for offset in scored["text_offset"])  # EOS is no text
    assert choice["text"] == f"{TEXT}Hello world"
    assert any(token.startswith("bytes:") for token in scored["tokens"])
    assert "<|im_start|>" in scored["tokens"]
    assert_offsets(scored["tokens"][:num_told], scored["text_offset"][:num_told], choice["text"])
    assert scored["token_logprobs"][0] is None


async def test_echoed_ids_say_the_same_as_their_text(client: httpx.AsyncClient, served: Served) -> None:
    text = TEXT.replace("<|im_start|>", "")
    ids = list(served.tokenizer.encode(text))
    fields = {"echo": True, "logprobs": 1, "max_tokens": 1, "seed": 1}
    by_text, by_ids = [
        (await client.post("/v1/completions", json={"prompt": prompt, **fields})).json()["choices"][0]
        for prompt in (text, ids)
    ]
    del by_text["decoding"], by_ids["decoding"]
    assert by_text == by_ids


async def test_special_ids_that_are_no_text_take_no_room(client: httpx.AsyncClient, served: Served) -> None:
    special = max(served.tokenizer.vocabulary.special_ids)
    ids = [special, *served.tokenizer.encode("dog"), special, *served.tokenizer.encode(" a")]
    fields = {"prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0}
    choice = (await client.post("/v1/completions", json=fields)).json()["choices"][0]
    assert choice["text"] == "dog a"
    offsets = dict(zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True))
    assert choice["logprobs"]["text_offset"][0] == 0
    assert offsets["<|im_end|>"] == 3


@pytest.mark.parametrize("is_nested", [True, False])
def test_a_post_processor_that_trims_spaces_does_not_move_offsets(tmp_path: Path, is_nested: bool) -> None:
    library = byte_tokenizer()
    trimming = processors.ByteLevel(trim_offsets=True)
    library.post_processor = processors.Sequence([trimming]) if is_nested else trimming
    (tmp_path / "tokenizer.json").write_text(library.to_str())
    trimmed = Library.from_file(str(tmp_path / "tokenizer.json")).encode("the dog")
    assert any(start and trimmed.offsets[i - 1][1] < start for i, (start, _) in enumerate(trimmed.offsets))
    tokenizer = Tokenizer.from_directory(tmp_path)
    (encoded,) = tokenizer._encode(["the dog"], True, with_starts=True)
    assert encoded.ids == tuple(trimmed.ids)
    names = [tokenizer.vocabulary.name(i) for i in encoded.ids]
    assert_offsets(names, list(encoded.starts), "the dog")
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]
