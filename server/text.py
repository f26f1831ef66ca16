"""Text <-> token ids for the served model, from the files `tokenizers` reads. It knows no model weights and no HTTP.

Encoding runs in a thread once it is long enough to hold up the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from server.chat_template import ChatTemplate, special_tokens
from server.detokenizer import Detokenizer
from server.errors import ApiError
from server.vocabulary import Vocabulary

INLINE_CHARS = 4096  # about a millisecond of encoding


def with_whole_offsets(data: bytes) -> bytes:
    """A tokenizer.json whose tokens begin at their first character, a space too.

    Many post-processors (Llama 3's, RoBERTa's) trim the spaces off the offsets, which then skip characters.
    """
    if b'"trim_offsets"' not in data:
        return data
    tokenizer = json.loads(data)
    post = tokenizer.get("post_processor") or {}
    trimming = [each for each in (post, *post.get("processors", ())) if each.get("trim_offsets")]
    for each in trimming:
        each["trim_offsets"] = False
    return json.dumps(tokenizer).encode() if trimming else data


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's token ids, and for each the character it begins at (0 for a special token put in front)."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


class Tokenizer:
    """The model's tokenizer and chat template."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, template: ChatTemplate | None = None, bos_token: str | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._bos_token = bos_token
        self.vocabulary = Vocabulary.of(tokenizer)
        self._longest_token = max(map(len, self.vocabulary.shown), default=1)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json and the chat template. Raises OSError or ValueError when they cannot be used."""
        path = Path(directory)
        data = (path / "tokenizer.json").read_bytes()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(with_whole_offsets(data))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError("tokenizer.json cannot be read") from error
        return cls(tokenizer, ChatTemplate.from_directory(path), special_tokens(path).get("bos_token"))

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text: the one that is named so, else the one put before every text."""
        if self._bos_token is not None:
            return self._tokenizer.token_to_id(self._bos_token)
        return next(iter(self.encode("")), None)

    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for in an answer's text; empty for special tokens."""
        return self.vocabulary.spoken

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return self._encode([text], add_special_tokens)[0].ids

    async def encode_all(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[Encoded]:
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self._encode(texts, add_special_tokens)
        return await asyncio.to_thread(self._encode, texts, add_special_tokens)

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
    ) -> tuple[int, ...]:
        """The prompt the chat template makes of the messages, special tokens and all. Raises ApiError 400."""
        if self._template is None:
            raise ApiError(400, "the model has no chat template; use /v1/completions", param="messages")
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        (encoded,) = await self.encode_all([text], add_special_tokens=add_special_tokens)
        return encoded.ids

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """A whole text, an incomplete last character as U+FFFD."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens, at_start=True)
        return detokenizer.text(token_ids) + detokenizer.end()

    def detokenizer(self, *, skip_special_tokens: bool = True, at_start: bool = False) -> Detokenizer:
        """at_start: the tokens begin a text rather than go on with one, so the space before the first word may go."""
        vocabulary = self.vocabulary
        return Detokenizer(
            vocabulary.spoken if skip_special_tokens else vocabulary.shown,
            strips_first_space=at_start and vocabulary.strips_first_space,
        )

    def fewest_tokens(self, text: str) -> int:
        """No encoding of the text is shorter: refuses what can never fit before the work is done."""
        return len(text) // self._longest_token

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [Encoded(tuple(encoding.ids), tuple(start for start, _ in encoding.offsets)) for encoding in encodings]
