"""Text <-> token ids for the served model, from the files `tokenizers` reads. It knows no model weights.

Encoding runs in a thread once it is long enough to hold up the event loop, and leaves no memory behind. Very long texts
have a thread to themselves: one at a time, and no other text waits for them.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from server.errors import ApiError
from server.text.added_tokens import add_stated
from server.text.chat_template import ChatTemplate, Conversation
from server.text.detokenizer import Detokenizer
from server.text.malloc_trim import malloc_trim
from server.text.template_files import special_tokens
from server.text.vocabulary import Vocabulary
from server.work_queue import WorkQueue

INLINE_CHARS = 4096  # about a millisecond of encoding
LONG_CHARS = 1 << 16  # some hundred milliseconds; encoding takes about 200 bytes for each character, for a while


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
    """A text's token ids, and for each, if asked for, the character it begins at (0 for a special token in front)."""

    ids: tuple[int, ...]
    starts: tuple[int, ...] = ()


class Tokenizer:
    """The model's tokenizer and chat template."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        template: ChatTemplate | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.template = template
        self._bos_token = bos_token
        self._eos_token = eos_token
        self._num_ids = sys.maxsize
        self.vocabulary = Vocabulary.of(tokenizer)
        self._longest_token = max(map(len, self.vocabulary.shown), default=1)
        self._short = WorkQueue("encoding", 2)
        self._long = WorkQueue("encoding of long texts", 1)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """Reads tokenizer.json and the chat template. Raises OSError or ValueError when they cannot be used."""
        path = Path(directory)
        data = (path / "tokenizer.json").read_bytes()
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(with_whole_offsets(data))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError("tokenizer.json cannot be read") from error
        add_stated(tokenizer, path)
        named = special_tokens(path)
        return cls(tokenizer, ChatTemplate.from_directory(path), named.get("bos_token"), named.get("eos_token"))

    def with_template(self, template: ChatTemplate) -> Tokenizer:
        """The same tokens under another chat template."""
        other = copy.copy(self)
        other.template = template
        return other

    def within(self, num_ids: int) -> Tokenizer:
        """The same for a model of so many ids: a text that has others is refused, as a model would fail on it."""
        other = copy.copy(self)
        other._num_ids = num_ids
        return other

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text: the one that is named so, else the one put before every text."""
        if self._bos_token is not None:
            return self._own_id(self._bos_token)
        return next(iter(self.encode("")), None)

    @property
    def eos_id(self) -> int | None:
        """The token that the tokenizer's files name as the end."""
        return None if self._eos_token is None else self._own_id(self._eos_token)

    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes each id stands for in an answer's text; empty for special tokens."""
        return self.vocabulary.spoken

    def special_tokens(self) -> tuple[tuple[int, str], ...]:
        """Ids and names of the special tokens."""
        return tuple((i, self.vocabulary.shown[i].decode()) for i in sorted(self.vocabulary.special_ids))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return self._encode([text], add_special_tokens)[0].ids

    def encode_up_to(self, most: int, text: str, *, add_special_tokens: bool) -> tuple[int, ...] | None:
        """None where it is more than `most` tokens, of which no list is made. For a thread."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids = tuple(encoding.ids) if len(encoding) <= most else None
        del encoding
        if len(text) > LONG_CHARS:
            malloc_trim()
        return ids

    async def encode_all(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, with_starts: bool = False
    ) -> list[Encoded]:
        """Batch by batch, so that other texts have their turn between those of one request.

        For those who hold a reservation: it bounds how many can wait here.
        """
        num_chars = sum(map(len, texts))
        if num_chars <= INLINE_CHARS:
            return self._encode(texts, add_special_tokens, with_starts)
        encoded: list[Encoded] = []
        for batch in _batches(texts):
            threads = self._long if len(batch[0]) > LONG_CHARS else self._short
            encoded += await threads.run(self._encode, batch, add_special_tokens, with_starts)
        if num_chars > LONG_CHARS:
            await self._short.run(malloc_trim)
        return encoded

    def chat_text(self, conversation: Conversation) -> str:
        """The prompt the chat template makes of the messages, special tokens and all. Raises ApiError 400."""
        if self.template is None:
            raise ApiError(400, "the model has no chat template; use /v1/completions", param="messages")
        return self.template.render(conversation)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """A whole text, an incomplete last character as U+FFFD."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens, at_start=True)
        return detokenizer.text(token_ids) + detokenizer.end()

    def bare(self, text: str, shown: Iterable[str] = ()) -> str:
        """The text without the names of special tokens, but for the shown ones."""
        names = self.vocabulary.special_names
        return text if names is None else names.sub(lambda name: name[0] if name[0] in shown else "", text)

    def ids_of(self, tokens: Iterable[str]) -> tuple[int, ...]:
        """Of those that are tokens."""
        ids = map(self._own_id, tokens)
        return tuple(token_id for token_id in ids if token_id is not None)

    def detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        at_start: bool = False,
        shown: Iterable[str] = (),
        behind: int | None = None,
    ) -> Detokenizer:
        """at_start: the tokens begin a text rather than go on with one, so the space before the first word may go.

        shown: tokens that are text here even if they are special. behind: the token before, where there is one.
        """
        vocabulary = self.vocabulary
        return Detokenizer(
            vocabulary.spoken if skip_special_tokens else vocabulary.shown,
            strips_first_space=at_start and vocabulary.strips_first_space,
            strips_last_space=vocabulary.strips_last_space,
            waiting=" " if behind is not None and vocabulary.ends_word(behind) else "",
            other={token_id: vocabulary.shown[token_id] for token_id in self.ids_of(shown)},
        )

    def special_id(self, token: str) -> int | None:
        """The id of a special token; None for what is text, or unknown."""
        token_id = self._own_id(token)
        return token_id if token_id in self.vocabulary.special_ids else None

    def fewest_tokens(self, text: str) -> int:
        """No encoding of the text is shorter: refuses what can never fit before the work is done."""
        return len(text) // self._longest_token

    def _encode(self, texts: Sequence[str], add_special_tokens: bool, with_starts: bool = False) -> list[Encoded]:
        """Half the work and memory without `with_starts`."""
        if not with_starts:
            fast = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [Encoded(self._known(encoding.ids)) for encoding in fast]
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [Encoded(self._known(each.ids), tuple(start for start, _ in each.offsets)) for each in encodings]

    def _own_id(self, token: str) -> int | None:
        token_id = self._tokenizer.token_to_id(token)
        return token_id if token_id is not None and token_id < self._num_ids else None

    def _known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids, all of which the model has. What is beyond is unknown to it. Raises ApiError 400 on added tokens."""
        highest = max(ids, default=0)
        if highest < self._num_ids:
            return tuple(ids)
        unknown = self.vocabulary.unknown_id
        if unknown is None or not self.vocabulary.added_ids.isdisjoint(i for i in ids if i >= self._num_ids):
            name = self.vocabulary.name(highest)
            raise ApiError(400, f"the text holds {name!r}, a token of the tokenizer's that the model does not have")
        return tuple(token_id if token_id < self._num_ids else unknown for token_id in ids)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """In order, of LONG_CHARS at most; a longer text is alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > LONG_CHARS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    yield batch
