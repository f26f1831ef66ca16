"""What each token id stands for in bytes, read off a tokenizer's decoder.

Byte-level BPE (GPT-2's byte alphabet), SentencePiece (▁ for a space, <0xNN> for a byte) and BPE with a suffix at the
end of words are mapped as the decoders of `tokenizers` do; for any other decoder a token stands for what it adds to
the decoding of another token. A token that was added to byte-level BPE stands for its own text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """shown[id]: the bytes of a token, special tokens by their name; spoken[id]: the same, special tokens empty.

    Ids that no token has are empty in both. added_ids: of tokens that are found in a text before it is cut into others.
    unknown_id: of what stands for any text that has no token. strips_first_space: the decoder drops the space before a
    text's first word; strips_last_space: that behind its last one.
    """

    shown: tuple[bytes, ...]
    spoken: tuple[bytes, ...]
    special_ids: frozenset[int]
    strips_first_space: bool
    strips_last_space: bool = False
    added_ids: frozenset[int] = frozenset()
    unknown_id: int | None = None

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> Vocabulary:
        tokens = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
        added = tokenizer.get_added_tokens_decoder()
        special = frozenset(i for i, token in added.items() if token.special)
        parts = json.loads(tokenizer.to_str())
        decoders = list(_decoders(parts["decoder"]))
        to_bytes = _mapping(tokenizer, decoders)
        own_text = _own_text(tokenizer, decoders)
        size = max(tokens, default=-1) + 1
        shown = tuple(
            tokens[i].encode() if i in special or i in own_text else to_bytes(i, tokens[i]) if i in tokens else b""
            for i in range(size)
        )
        spoken = tuple(b"" if i in special else piece for i, piece in enumerate(shown))
        return cls(
            shown,
            spoken,
            special,
            strips_first_space=not decoders or any(map(_strips, decoders)),
            strips_last_space=any(decoder["type"] == "BPEDecoder" for decoder in decoders),
            added_ids=frozenset(added),
            unknown_id=_unknown_id(parts["model"], tokenizer),
        )

    @functools.cached_property
    def special_names(self) -> re.Pattern[str] | None:
        """Finds the names of special tokens, the longest first."""
        names = sorted((self.shown[i].decode() for i in self.special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    @property
    def size(self) -> int:
        return len(self.shown)

    def name(self, token_id: int) -> str:
        """The token as text, or "bytes:\\xe2\\x80" where it is no text alone, lest such tokens collide."""
        piece = self.shown[token_id] if token_id < self.size else b""
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def ends_word(self, token_id: int) -> bool:
        """Whether the token brings a space that is dropped where nothing follows."""
        return self.strips_last_space and token_id < self.size and self.spoken[token_id].endswith(b" ")

    def bytes_of(self, token_id: int) -> bytes:
        return self.shown[token_id] if token_id < self.size else b""


def _unknown_id(model: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> int | None:
    """Unigram has an id, the others a token."""
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    token = model.get("unk_token")
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


def _decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoders(part)
    else:
        yield decoder


def _strips(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    if decoder["type"] == "WordPiece":
        return True
    return bool(decoder["type"] == "Strip" and decoder["content"] == " " and decoder["start"] > 0)


def _own_text(tokenizer: tokenizers.Tokenizer, decoders: list[dict[str, Any]]) -> frozenset[int]:
    """Ids of tokens that are no spelling in the byte alphabet: those added to a byte-level vocabulary."""
    if {decoder["type"] for decoder in decoders} != {"ByteLevel"}:
        return frozenset()
    spelt = set(tokenizer.get_vocab(with_added_tokens=False).values())
    return frozenset(tokenizer.get_added_tokens_decoder()) - spelt


def _mapping(tokenizer: tokenizers.Tokenizer, decoders: list[dict[str, Any]]) -> Callable[[int, str], bytes]:
    kinds = {decoder["type"] for decoder in decoders}
    if kinds == {"ByteLevel"}:
        alphabet = byte_alphabet()
        return lambda _, token: _byte_level(token, alphabet)
    if kinds == {"BPEDecoder"}:
        suffix = decoders[0]["suffix"]
        return lambda _, token: token.replace(suffix, " ").encode()
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return lambda _, token: _sentencepiece(token)
    return _Beside(tokenizer)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(token: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes(alphabet[char] for char in token)
    except KeyError:  # an added token, which stands for itself
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


class _Beside:
    """What a token adds when it is decoded behind token 0."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alone = self._decode([0])

    def __call__(self, token_id: int, _: str) -> bytes:
        return self._decode([0, token_id]).removeprefix(self._alone).encode()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))
